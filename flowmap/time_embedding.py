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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ._types import Time
from .clock import Clock, Features, Hand
from .kernels import exact

Delta: TypeAlias = Literal["r", "t-r"]


def mix(now: Tensor, then: Tensor, gamma: float) -> Tensor:
    """(1 - γ) now + γ then; `now` itself, bit for bit, where the two are equal."""
    return now + gamma * (then - now)


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
        with _without_autocast(x.device.type), exact():
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
        with _without_autocast(x.device.type), exact():
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
    second: bool = False,
) -> nn.Module:
    """Replace the submodule at the dotted path `embedder` by an `ExactTimeEmbedding` of it, in place; as `lift`.

    second: it embeds r, of a network that has two times of its own.
    """
    hand = _hand(network, embedder, clock, features, others=tuple(others), rounded=rounded, second=second)
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
