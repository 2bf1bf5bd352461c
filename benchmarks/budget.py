"""What training costs in calls of networks, so that every method may have the same number of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from attrs import evolve, frozen
from flowmap_consistency.decoded import Decoded
from flowmap_far import Far

from flowmap import AdamW, Ema, FlowMap, FlowMapSpec, Recipe, Stage, TensorData
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.method import Method
from flowmap.model import Wrapped
from flowmap.objectives import equipped
from flowmap.testing import CountingFlowMap
from flowmap.training.loop import Trainer
from flowmap.training.ranks.networks import build

DRY = 8
"""Samples of a dry run: what shares of a batch come to, to the eighth."""


@frozen
class Calls:
    """Calls of a network on one sample: with a graph, without, and what a tangent that goes along adds."""

    graph: float = 0.0
    plain: float = 0.0
    tangent: float = 0.0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.graph + other.graph, self.plain + other.plain, self.tangent + other.tangent)

    def __mul__(self, n: float) -> Calls:
        return Calls(n * self.graph, n * self.plain, n * self.tangent)

    @property
    def total(self) -> float:
        """G and F count one, J and GJ two."""
        return self.graph + self.plain + self.tangent


Cost = Mapping[Role, Calls]
ROLES: tuple[Role, ...] = ("student", "teacher", "critic")


class Meter(Wrapped):
    """`u`, counting samples: frames that it is called on, clean history among them, by those of a sample."""

    u: CountingFlowMap

    def __init__(self, u: FlowMap, frames: int) -> None:
        super().__init__(CountingFlowMap(u))
        self.frames, self.calls = frames, Calls()

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.u.reset()
        out: Latent = self.u(z, t, r, cond, cache)
        seen = z.shape[1] + (cond["history"].shape[1] if "history" in cond else 0)
        found = Calls(self.u.graph, self.u.plain, self.u.graph_j + self.u.plain_j)
        self.calls += found * (seen / self.frames)
        return out

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        if len(self.u.chunks(self.frames)) > 1:
            self.calls += Calls(plain=len(x) * x.shape[1] / self.frames)
        return self.u.extend(cache, x, cond)


def count(tiny: Recipe, frames: int, rounds: int) -> list[Cost]:
    """By stage, what an iteration costs a sample: the mean of `rounds` rounds of the updates of a tiny network."""
    device = torch.device("cpu")
    z, cond = tiny.backbone.example(2 * DRY)
    data = TensorData(z[:, :frames], cond, tiny.backbone.null(cond))
    meters = {role: Meter(u, min(frames, z.shape[1])) for role, u in build(tiny, device, torch.float32).items()}
    nets = equipped(meters, tiny.equips, data.batch([0]))
    costs: list[Cost] = []
    for index, stage in enumerate(tiny.stages):
        still = {role: AdamW(1e-9) for role in stage.method.trains}
        trainer = Trainer(nets, evolve(stage, batch=DRY, micro=None, optimizer=still, ema=None), data, 0, index)
        iterations = rounds * period(stage.method)
        for meter in meters.values():
            meter.calls = Calls()
        for iteration in range(iterations):
            trainer.step(iteration)
        costs.append({role: meter.calls * (1 / DRY / iterations) for role, meter in meters.items()})
    return costs


def small(backbone: FlowMapSpec) -> FlowMapSpec:
    """As `tiny`, with the same chunks, or heads on the same grid: they say how often the network is called."""
    tiny = backbone.tiny()
    if isinstance(tiny, Decoded) and isinstance(backbone, Decoded):
        return evolve(tiny, heads=backbone.heads, times=backbone.times)
    if isinstance(tiny, Far) and isinstance(backbone, Far):
        return evolve(tiny, partition=backbone.partition, full=backbone.full)
    return tiny


def period(method: Method) -> int:
    """Iterations until the updates repeat."""
    return math.lcm(*(n for update in method.updates for n in (update.every, update.skip or 1)))


def scaled(stage: Stage, batch: int, scale: float, factor: float) -> Stage:
    """`scale` times as long, with `factor` times the learning rates; warm-up and average shrink with the stage."""

    def fast(settings: AdamW) -> AdamW:
        return evolve(settings, lr=factor * settings.lr, warmup=round(scale * settings.warmup))

    given, ema = stage.optimizer, stage.ema
    optimizer = fast(given) if isinstance(given, AdamW) else {role: fast(one) for role, one in given.items()}
    if ema is not None:
        ema = Ema(max(0.0, 1 - (1 - ema.decay) / scale), start=round(scale * ema.start))
    return evolve(stage, steps=max(1, round(scale * stage.steps)), batch=batch, optimizer=optimizer, ema=ema)
