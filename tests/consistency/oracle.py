"""An exact flow map with a bend in it: right on the diagonal, wrong off it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowmap import Batch, FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.path import expand
from flowmap.testing import GaussianFlowMap
from tests.objectives.test_flow_map_matching import MEAN, STD, data


class Bent(FlowMap):
    """u + bend · (t - r): what flow matching cannot see, and every identity off the diagonal can."""

    def __init__(self, bend: float, u: FlowMap | None = None) -> None:
        super().__init__()
        self.u = (u or GaussianFlowMap(MEAN, STD)).requires_grad_(False)
        self.bend = nn.Parameter(torch.tensor(bend, dtype=torch.float64))

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        u: Latent = self.u(z, t, r, cond, cache)
        return u + self.bend * expand(t - r, z)


def pull(student: FlowMap, objective: Any, batch: Batch | None = None, seed: int = 0, iteration: int = 0) -> Tensor:
    """The gradient of what the student trains, beside the true teacher."""
    nets: Any = {"student": student, "teacher": GaussianFlowMap(MEAN, STD).requires_grad_(False)}
    value = objective(nets, batch or data(), Rng.seeded(seed), Shared(iteration)).value
    return torch.stack(torch.autograd.grad(value, [*student.trained().values()]))
