"""Lift a diffusion network to two times: e(t, r) = (1 - γ) e(t) + γ e'(r), with e' a copy of e.

AnyFlow, arXiv:2605.13724. On the diagonal the fresh embedding is e(t), bit for bit in float32, so the lifted network
starts as the diffusion network; a zero-initialised extra branch would too, but its norm grows in training and the
samples saturate. γ is fixed and small: off the diagonal the network still mostly reads t.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ._types import Time

Delta: TypeAlias = Literal["r", "t-r"]


def mix(now: Tensor, then: Tensor, gamma: float) -> Tensor:
    """(1 - γ) now + γ then."""
    return (1 - gamma) * now + gamma * then


class TwoTimeEmbedding(nn.Module):
    """Stands in for the module that embeds the time of a diffusion network; both times come in one tensor.

    Called with [B, 2] (or [B, F, 2]) times made by `pair`, and whatever else the embedder takes.
    `delta`: the second embedder sees r, or t - r, which has no identity on the diagonal unless the embedder is
    additive and e'(0) = 0: "t-r" starts from a different network.
    """

    def __init__(self, embedder: nn.Module, gamma: float = 0.25, delta: Delta = "r") -> None:
        super().__init__()
        if not 0.0 < gamma < 1.0:
            raise ValueError(f"gamma = {gamma}: must be in (0, 1); at 0 the network would ignore r")
        self.now, self.then = embedder, copy.deepcopy(embedder)
        self.gamma, self.delta = gamma, delta

    def forward(self, times: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if times.shape[-1:] != (2,):
            raise ValueError(
                f"a lifted time embedder was called with {tuple(times.shape)}: it takes [..., 2], made by `pair`, so "
                "the network must hand its time on to it as it came, or changed elementwise"
            )
        t, r = times.unbind(-1)
        with _without_autocast(times.device.type):
            now = self.now(t, *args, **kwargs)
            then = self.then(r if self.delta == "r" else t - r, *args, **kwargs)
            return mix(now, then, self.gamma)


class ExactTimeEmbedding(nn.Module):
    """An embedder of one time, kept out of autocast, as `TwoTimeEmbedding` keeps its two."""

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.now = embedder

    def forward(self, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with _without_autocast(t.device.type):
            embedded: Tensor = self.now(t, *args, **kwargs)
        return embedded


def _without_autocast(device: str) -> AbstractContextManager[None]:
    """In bfloat16 t and t + h may be one number. A context only where needed: an exported graph would keep it."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def pair(t: Time, r: Time) -> Tensor:
    """(t, r) as the one tensor that a lifted network takes for its time: [..., 2]."""
    return torch.stack([t, r], -1)


def lift(network: nn.Module, embedder: str, gamma: float = 0.25, delta: Delta = "r") -> nn.Module:
    """Replace the submodule at the dotted path `embedder` by a `TwoTimeEmbedding` of it, in place."""
    return _replace(network, embedder, lambda module: TwoTimeEmbedding(module, gamma, delta))


def keep_exact(network: nn.Module, embedder: str) -> nn.Module:
    """Replace the submodule at the dotted path `embedder` by an `ExactTimeEmbedding` of it, in place."""
    return _replace(network, embedder, ExactTimeEmbedding)


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
