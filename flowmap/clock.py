"""The times of the call that is running, beside what a network makes of its own.

A network may round its time to the type of its weights, flatten it, repeat it for each token, or make sinusoids of it
before it embeds it. A `Clock` holds the times in float32, and every embedder of the network reads it by its `Hand`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor

from ._types import Time

Features: TypeAlias = Callable[[Tensor], Tensor]
"""What an embedder takes, of times [N]: [N, ...], such as sinusoids."""


class Clock:
    """The times of the call that is running, float32, in the units of the network: [B], or [B, n] where frames or
    tokens have a time each.

        with clock.at(1000 * t, 1000 * r) as told:
            net(z, told)

    The network itself is told `now`; muted, NaN, by which a check sees whether all of the time comes from here.
    """

    def __init__(self) -> None:
        self.reading: Reading | None = None
        self.muted = False

    def at(self, now: Time, then: Time | None = None) -> AbstractContextManager[Time]:
        """then: what the second embedder is to see, r or t - r; None: one time is read, e(t)."""
        for name, times in (("now", now), ("then", then)):
            if times is not None and times.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"Clock.at: {name} is {times.dtype}: must be float32, or neighbouring times are one")
        if then is not None and then.shape != now.shape:
            raise ValueError(f"Clock.at: then is {list(then.shape)}: must be {list(now.shape)}, as now is")
        told = torch.full_like(now, torch.nan) if self.muted else now
        return _Set(self, Reading(now.flatten(), None if then is None else then.flatten()), told)

    def contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """For `torch.utils.checkpoint.checkpoint(..., context_fn=clock.contexts)` inside a network.

        Recomputation comes after the call, so a time that is embedded there is this call's.
        """
        return nullcontext(), _Set(self, self.reading, None)


class Reading:
    """What a clock says during one call, [N] each, and how often each embedder has asked."""

    def __init__(self, now: Tensor, then: Tensor | None) -> None:
        self.now, self.then = now, then
        self.asked: dict[str, int] = {}

    def count(self, path: str) -> int:
        """0 for the first time that the embedder at `path` asks."""
        n = self.asked.get(path, 0)
        self.asked[path] = n + 1
        return n


class _Set(AbstractContextManager[Any]):
    """While entered, `clock` says `reading`. It may be entered again: a graph can be walked backward twice."""

    def __init__(self, clock: Clock, reading: Reading | None, told: Time | None) -> None:
        self.clock, self.reading, self.told, self.before = clock, reading, told, clock.reading

    def __enter__(self) -> Time | None:
        self.before, self.clock.reading = self.clock.reading, self.reading
        return self.told

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clock.reading = self.before


@frozen(eq=False)
class Hand:
    """How the embedder at `path` reads a clock.

    features: what it takes, of times; None for the times themselves. others: those of its calls within one call of the
    network, counted from 0, that are for another time, which is embedded as it comes.

    rounded: the network rounds its time on the way even in float32. second: of a network that has two times of its own,
    the embedder of r; it sees r, or t where the call has one time, and the network hands it t.

    Whether the time that the network itself hands on is the clock's is looked at once for each such call, unless it is
    rounded: an embedder that is called for another time, and not said to be, is an error.
    """

    clock: Clock
    path: str
    features: Features | None = None
    others: Sequence[int] = ()
    rounded: bool = False
    second: bool = False
    looked: set[int] = field(factory=set)

    def times(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the two embedders take in place of x, which the network made of its own time; in x's shape."""
        reading = self.clock.reading
        if reading is None:
            raise ValueError(
                f"{self.path} embeds a time, and its clock has none: it was called outside of `Clock.at`, or again in "
                "the backward pass, by a checkpoint inside the network: give that one context_fn=clock.contexts"
            )
        n = reading.count(self.path)
        if n in self.others:
            return x, None
        now = self._taken(reading.now, x, n)
        if self.clock.muted and not bool(x.isnan().all()):
            raise ValueError(f"{self._called(n)} for another time than the clock's: {OTHERS}")
        if not self.clock.muted and not self.rounded and n not in self.looked and _readable(x):
            off = float((x.detach() - now.detach()).abs().max())
            if not off <= SLACK * max(1.0, float(now.detach().abs().max())):
                raise ValueError(f"{self._called(n)} for another time than the clock's, off by {off:.2g}: {OTHERS}")
            self.looked.add(n)
        then = None if reading.then is None else self._taken(reading.then, x, n)
        return (now if then is None else then, None) if self.second else (now, then)

    def _taken(self, times: Tensor, x: Tensor, n: int) -> Tensor:
        f = times if self.features is None else self.features(times)
        asked = math.prod(x.shape[: x.dim() - (f.dim() - 1)])  # times, one or more for each of the clock's
        each = asked // times.shape[0]
        if each == 0 or each * times.shape[0] != asked:
            raise ValueError(f"{self._called(n)} for {asked} times, and the clock has {times.shape[0]}: {OTHERS}")
        return (f if each == 1 else f.repeat_interleave(each, 0)).reshape(x.shape)

    def _called(self, n: int) -> str:
        return f"{self.path}: call {n} of this embedder within one of the network is"


OTHERS = "where that is meant, name the call in `others`; where the units differ, tell the clock the network's own"
SLACK = 1e-3
"""Of a sinusoid of 1000 t, float32."""


def _readable(x: Tensor) -> bool:
    """Whether its numbers can be looked at, and were not rounded on their way."""
    exact = type(x) is Tensor and not x.is_meta and x.dtype in (torch.float32, torch.float64)
    return exact and not torch.compiler.is_compiling()
