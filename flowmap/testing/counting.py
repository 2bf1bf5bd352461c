"""What a method costs, in calls of its networks: G with a graph to run backward through, F without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .._types import Cache, Cond, Latent, Rng, Role, Time
from ..model import FlowMap


class CountingFlowMap(FlowMap):
    """`u`, counting samples: a call on a batch of n is n, and one call of two branches is 2 n."""

    def __init__(self, u: FlowMap) -> None:
        super().__init__()
        self.u = u
        self.graph = 0  # G
        self.plain = 0  # F

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        out: Latent = self.u(z, t, r, cond, cache)
        if torch.is_grad_enabled() and out.requires_grad:
            self.graph += len(z)
        else:
            self.plain += len(z)
        return out

    def reset(self) -> None:
        self.graph = self.plain = 0

    def chunks(self, frames: int) -> tuple[int, ...]:
        return self.u.chunks(frames)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        return self.u.extend(cache, x, cond)

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        return self.u.teacher_forcing(x, cond, rng)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.u.blocks

    def trained(self) -> Mapping[str, nn.Parameter]:
        return self.u.trained()

    def thaw(self) -> None:
        self.u.thaw()


def counting(nets: Mapping[Role, FlowMap]) -> dict[Role, CountingFlowMap]:
    """The networks, each with a count of its own."""
    return {role: CountingFlowMap(u) for role, u in nets.items()}
