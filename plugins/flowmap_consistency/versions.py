"""Other versions of what a network trains, on the same base: the policy that made the samples, and where it began."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, final

import torch
from attrs import field, frozen
from torch import Tensor, nn

from flowmap import Batch, FlowMap, validators
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.doing import spent_on
from flowmap.model import Wrapped
from flowmap.pieces import in_pieces


@frozen
class Keeps:
    """Called, it makes `Versions` of a network: an `Equip`."""

    names: tuple[str, ...] = field(default=("old", "reference"), validator=validators.min_len(1))
    as_flow_map: ClassVar[bool] = True

    def __call__(self, u: FlowMap, sample: Batch) -> Versions:
        return Versions(u, self.names)


@final
class Versions(Wrapped):
    """`u`, and frozen copies of all that it trains, by name: of its adapters and of what is trained whole beside them.

    While one is in use the network computes with it; the base is there once. They are in `trained()`, so that a
    checkpoint has them, and have no gradient, so that no optimiser moves them. Calls of a version build no graph.
    """

    def __init__(self, u: FlowMap, names: tuple[str, ...]) -> None:
        super().__init__(u)
        self.at: tuple[int, ...] = ()  # which iteration the versions were brought up to
        self.kept = nn.ModuleDict({name: nn.ParameterList(_copy(p) for p in u.trained().values()) for name in names})

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        out: Latent = self.u(z, t, r, cond, cache)
        return out

    def trained(self) -> Mapping[str, nn.Parameter]:
        own = self.u.trained()
        kept = {f"{name}.{key}": p for name in self.kept for key, p in zip(own, self._of(name), strict=True)}
        return {**own, **kept}

    @torch.no_grad()
    def follow(self, name: str, keep: float) -> None:
        """version <- keep · version + (1 - keep) · network; with 0 a copy, bit for bit."""
        for old, p in zip(self._of(name), self.u.trained().values(), strict=True):
            mine, own = _held(old), _held(p)
            mine.copy_(own) if keep == 0.0 else mine.lerp_(own.to(mine), 1 - keep)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """While entered, the network is that version, without a graph; then itself, with the graphs that it had.

        Of a network in pieces the numbers go into its pieces, of which each call puts the network together.
        """
        own = [*self.u.trained().values()]
        held = [_held(p).clone() if in_pieces(p) else p.data for p in own]
        try:
            self._fill(own, [_held(version) for version in self._of(name)])
            with torch.no_grad(), spent_on(name):
                yield
        finally:
            self._fill(own, held)

    @staticmethod
    @torch.no_grad()
    def _fill(own: Sequence[nn.Parameter], data: Sequence[Tensor]) -> None:
        for p, new in zip(own, data, strict=True):
            if in_pieces(p):
                _held(p).copy_(new)
            else:
                p.data = new

    def _of(self, name: str) -> list[nn.Parameter]:
        return [*self.kept[name].parameters()]


def _held(p: Tensor) -> Tensor:
    """What this rank has of it."""
    return p.to_local().detach() if in_pieces(p) else p.detach()


def _copy(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(p.detach().clone(), requires_grad=False)
