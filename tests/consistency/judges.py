"""Networks whose features are known: a toy that names its blocks, and a judge that is linear in its sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import evolve
from flowmap_consistency.heads import Judge
from torch import Tensor, nn

from flowmap import AdamW, Batch, FlowMap, Stage
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.method import Method
from flowmap.objectives import equipped
from flowmap.testing import CountingFlowMap, counting
from flowmap.training.loop import Trainer
from tests.toys import Toy, ToyFlowMap, data

ROLES = frozenset[Role]({"student", "teacher", "critic"})
CPU = torch.device("cpu")
BATCH = 4


class Named(ToyFlowMap):
    """The toy; its blocks give out tokens of 3 widths and of 1."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [self.net.qkv, self.net.mlp]


def toy(spec: Toy | None = None) -> Toy:
    return evolve(spec or Toy(), network=Named)


class Flat(FlowMap):
    """v = scale · z. Its block gives out z as one token, in a tuple with something else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.block = Pair()

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.block(z.flatten(1)[:, None])
        return self.scale * z

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [self.block]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


class Linear(nn.Module):
    """[B, 1, d] -> w · x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        return tokens[0][:, 0] @ self.weight


def linear(weight: Tensor) -> Judge:
    """D(z, t) = w · z."""
    return Judge(Flat(), (0,), Linear(weight))


def trainer(
    method: Method,
    spec: Toy | None = None,
    micro: int | None = None,
    optimizer: Mapping[Role, AdamW] | AdamW = AdamW(),  # noqa: B008, a frozen value
) -> tuple[Trainer, dict[Role, CountingFlowMap]]:
    """A trainer of the toy, whose calls are counted."""
    counted = counting(toy(spec).build(ROLES, device=CPU, dtype=torch.float32))
    nets = equipped(counted, method.equips, data(1).batch([0]))
    for u in counted.values():
        u.reset()
    stage = Stage(method, 100, batch=BATCH, micro=micro, optimizer=optimizer, ema=None)
    return Trainer(nets, stage, data(16)), counted


def calls(
    method: Method, iterations: int = 1, spec: Toy | None = None, micro: int | None = None
) -> dict[Role, tuple[float, float]]:
    """(G, F) by role, a sample."""
    loop, nets = trainer(method, spec, micro)
    for iteration in range(iterations):
        loop.step(iteration)
    return {role: (u.graph / BATCH, u.plain / BATCH) for role, u in nets.items()}


def one(n: int = 2) -> Batch:
    return data(n).batch([*range(n)])
