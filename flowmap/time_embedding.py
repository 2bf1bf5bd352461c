"""Lift a diffusion network to two times: e(t, r) = (1 - γ) e(t) + γ e'(r), with e' a copy of e.

AnyFlow, arXiv:2605.13724. On the diagonal the fresh embedding is e(t), bit for bit, so the lifted network starts as the
diffusion network; a zero-initialised extra branch would too, but its norm grows in training and the samples saturate.
γ is fixed and small: off the diagonal the network still mostly reads t.

The times reach an embedder in one of two ways. A network that hands its time on as it came, or changed elementwise, is
given both in one tensor (`pair`). Others round it to the type of their weights, flatten it, repeat it for each token,
or make sinusoids of it first: there a `Clock` holds the times of the call that is running, float32, and the embedders
read the clock.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from types import TracebackType
from typing import Any, Literal, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor, nn

from ._types import Time

Delta: TypeAlias = Literal["r", "t-r"]
Features: TypeAlias = Callable[[Tensor], Tensor]
"""What an embedder takes, of times [N]: [N, ...], such as sinusoids."""


def mix(now: Tensor, then: Tensor, gamma: float) -> Tensor:
    """(1 - γ) now + γ then; `now` itself, bit for bit, where the two are equal."""
    return now + gamma * (then - now)


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

    rounded: the network rounds its time on the way even in float32.

    Whether the time that the network itself hands on is the clock's is looked at once for each such call, unless it is
    rounded: an embedder that is called for another time, and not said to be, is an error.
    """

    clock: Clock
    path: str
    features: Features | None = None
    others: Sequence[int] = ()
    rounded: bool = False
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
        return now, None if reading.then is None else self._taken(reading.then, x, n)

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


class TwoTimeEmbedding(nn.Module):
    """Stands in for the module that embeds the time of a diffusion network.

    Without a `hand`, it is called with both times in one tensor, [B, 2] or [B, F, 2], made by `pair`; with one, with
    what the network makes of its own time, and reads the clock. Whatever else the embedder takes goes to both.
    `delta`: the second embedder sees r, or t - r, which has no identity on the diagonal unless the embedder is
    additive and e'(0) = 0: "t-r" starts from a different network. A clock is told which of them.
    """

    def __init__(self, embedder: nn.Module, gamma: float = 0.25, delta: Delta = "r", hand: Hand | None = None) -> None:
        super().__init__()
        if not 0.0 < gamma < 1.0:
            raise ValueError(f"gamma = {gamma}: must be in (0, 1); at 0 the network would ignore r")
        self.now, self.then = embedder, copy.deepcopy(embedder)
        self.gamma, self.delta = gamma, delta
        self.hand = hand

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        t, r = self._unpaired(x) if self.hand is None else self.hand.times(x)
        with _without_autocast(x.device.type):
            e = _embedded(self.now, t, self.hand, args, kwargs)
            if r is not None:
                e = mix(e, _embedded(self.then, r, self.hand, args, kwargs), self.gamma)
        return _as_asked(e, x, self.hand)

    def _unpaired(self, times: Tensor) -> tuple[Tensor, Tensor]:
        if times.shape[-1:] != (2,):
            raise ValueError(
                f"a lifted time embedder was called with {tuple(times.shape)}: it takes [..., 2], made by `pair`, so "
                "the network must hand its time on to it as it came, or changed elementwise; where it makes features "
                "of its time first, say what makes them: features="
            )
        t, r = times.unbind(-1)
        return t, r if self.delta == "r" else t - r


class ExactTimeEmbedding(nn.Module):
    """An embedder of one time, kept out of autocast, as `TwoTimeEmbedding` keeps its two."""

    def __init__(self, embedder: nn.Module, hand: Hand | None = None) -> None:
        super().__init__()
        self.now = embedder
        self.hand = hand

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        t, _ = (x, None) if self.hand is None else self.hand.times(x)
        with _without_autocast(x.device.type):
            e = _embedded(self.now, t, self.hand, args, kwargs)
        return _as_asked(e, x, self.hand)


def _embedded(embedder: nn.Module, t: Tensor, hand: Hand | None, args: Any, kwargs: Any) -> Tensor:
    if hand is not None and hand.features is not None and (p := next(embedder.parameters(), None)) is not None:
        t = t.to(p.dtype)
    e: Tensor = embedder(t, *args, **kwargs)
    return e


def _as_asked(e: Tensor, x: Tensor, hand: Hand | None) -> Tensor:
    """In the type that the network goes on in, where the embedder itself is kept in a wider one."""
    return e if hand is None or hand.features is None else e.to(x.dtype)


def _without_autocast(device: str) -> AbstractContextManager[None]:
    """In bfloat16 t and t + h may be one number. A context only where needed: an exported graph would keep it."""
    there = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if there else nullcontext()


def pair(t: Time, r: Time) -> Tensor:
    """(t, r) as the one tensor that a lifted network takes for its time: [..., 2]."""
    return torch.stack([t, r], -1)


def lift(
    network: nn.Module,
    embedder: str,
    gamma: float = 0.25,
    delta: Delta = "r",
    *,
    clock: Clock | None = None,
    features: str | Features | None = None,
    others: Sequence[int] = (),
    rounded: bool = False,
) -> nn.Module:
    """Replace the submodule at the dotted path `embedder` by a `TwoTimeEmbedding` of it, in place.

    clock: that the times come from, and not from the network; the same for every embedder of one network. features,
    others, rounded: as in `Hand`; features may be the path of a submodule.
    """
    hand = _hand(network, embedder, clock, features, others=tuple(others), rounded=rounded)
    return _replace(network, embedder, lambda module: TwoTimeEmbedding(module, gamma, delta, hand))


def keep_exact(
    network: nn.Module,
    embedder: str,
    *,
    clock: Clock | None = None,
    features: str | Features | None = None,
    others: Sequence[int] = (),
    rounded: bool = False,
) -> nn.Module:
    """Replace the submodule at the dotted path `embedder` by an `ExactTimeEmbedding` of it, in place; as `lift`."""
    hand = _hand(network, embedder, clock, features, others=tuple(others), rounded=rounded)
    return _replace(network, embedder, lambda module: ExactTimeEmbedding(module, hand))


def _hand(
    network: nn.Module, path: str, clock: Clock | None, features: str | Features | None, **said: Any
) -> Hand | None:
    if isinstance(features, str):
        check_submodule(network, features)
        features = network.get_submodule(features)
    return None if clock is None else Hand(clock, path, features, **said)


def _replace(network: nn.Module, path: str, by: Callable[[nn.Module], nn.Module]) -> nn.Module:
    check_submodule(network, path)
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, by(network.get_submodule(path)))
    return network


def check_submodule(network: nn.Module, path: str, shown: int = 20) -> None:
    """An error that says which submodules there are, where `path` is none of them."""
    there = [name for name, _ in network.named_modules() if name]
    if path in there:
        return
    first = sorted(there, key=lambda name: name.count("."))[:shown]
    more = f" and {len(there) - shown} below them" if len(there) > shown else ""
    near = get_close_matches(path, there, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{type(network).__name__} has no submodule {path!r}: there are {', '.join(first) or 'none'}{more}{hint}"
    )
