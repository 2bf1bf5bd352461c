"""rCM: score-regularised continuous-time consistency, arXiv:2510.08431."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from attrs import field, frozen
from torch import Tensor

from flowmap import AdamW, FlowMap, Recipe, Rng, Stage, validators
from flowmap._types import Cond, Latent, Role, Shared, Time
from flowmap.derivative import Derivative, ForwardMode
from flowmap.method import Method, Update
from flowmap.methods.citations import DMD
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.path import shift as shifted
from flowmap.reweights import Ramp
from flowmap.rollout import consistency_step, walk
from flowmap.times import Density, Diagonal, LogitNormal, Uniform

from .citations import RCM, SCM
from .scale import Scale
from .scm import ContinuousConsistency

OPTIMIZER: Mapping[Role, AdamW] = {
    "student": AdamW(2e-6, (0.0, 0.999), weight_decay=0.01, warmup=100, clip=math.inf),
    "critic": AdamW(4e-7, (0.0, 0.999), weight_decay=0.01, warmup=100, clip=math.inf),
}
"""Published for Wan2.1 1.3B; at 14B 1e-6 and 1e-7. There the average is of a power function's profile, width 0.1."""


PUBLISHED = 21 * 16 * 60 * 104
"""Elements of a latent of 81 frames of 480 × 832."""


@frozen
class RandomTimesSimulation:
    """1 to `steps` jumps to data, the number uniform, noising again in between to random times; one of a kind a sample.

    The times between pure noise and data are draws from `density`, shifted and sorted. Only the last jump is
    differentiable. E[calls] = (steps + 1) / 2.
    """

    steps: int = field(default=4, validator=validators.ge(1))
    density: Density = Uniform()
    shift: float = field(default=5.0, validator=validators.gt(0.0))

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        count, n = rng.randint(self.steps), len(noise)
        between = [shifted(self.density(n, rng, noise), self.shift) for _ in range(count)]
        ends = torch.ones(n, device=noise.device), torch.zeros(n, device=noise.device)
        grid = torch.stack([*ends, *between]).sort(0, descending=True).values  # [count + 2, B]
        return walk(u, noise, cond, grid, rng, step=consistency_step, grad_last=1)


@frozen
class InData:
    """The critic's ‖x̂ - x‖² / sin² θ, of the mean square error of its velocity: (1 - t)² + t²."""

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return (1 - t) ** 2 + t**2


def warmup(
    *,
    steps: int = 1000,
    w: float = 5.0,
    mean: float = 0.7,
    std: float = 1.6,
    derivative: Derivative = ForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """The first iterations, of consistency alone, while ρ rises over `steps` of them: 1000 at 1.3B, none at 14B."""
    matching = ContinuousConsistency(Diagonal(LogitNormal(mean, std)), derivative, "teacher", w, Ramp(steps), "rcm")
    updates = (Update("student", ((100.0, matching),)),)
    return Method("rcm_warmup", updates, (RCM, SCM), sampler="consistency", guidance=w)


def rcm(
    *,
    shift: float = 5.0,
    w: float = 5.0,
    mean: float = 0.7,
    std: float = 1.6,
    steps: int = 4,
    consistency: float = 100.0,
    dmd: float = 1.0,
    every: int = 5,
    derivative: Derivative = ForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """consistency · L_sCM + dmd · L_DMD, after `warmup`: forward divergence, which covers modes, and reverse.

    The student learns in one of `every` iterations (14B: 10), the critic in the others. Both losses of the paper are
    sums over elements; here both are means. The tangent has norm 1 whatever the size D of a latent, DMD's direction a
    mean of about 1, so their gradients' ratio goes with 1/√D: 100 is for 81 frames of 480 × 832. Its rollout makes
    (iteration mod 4) + 1 steps; here the number is drawn, each as often.

    Calls a sample and `every` iterations: 2 G + 1 J + 1.5 F of the student, 4 F of the teacher, 1 F of the critic; and
    every - 1 times 2.5 F of the student and 1 G of the critic.
    """
    rollout = RandomTimesSimulation(steps, Uniform(), shift)
    matching = ContinuousConsistency(Diagonal(LogitNormal(mean, std)), derivative, "teacher", w, Ramp(), "rcm")
    regulariser = DistributionMatching(rollout, Diagonal(shift=shift), w, floor=1e-5)
    critic = CriticMatching(rollout, Diagonal(shift=shift), (InData(),))
    updates = (
        Update("student", ((consistency, matching), (dmd, regulariser)), every=every),
        Update("critic", ((1.0, critic),), skip=every),
    )
    return Method("rcm", updates, (RCM, SCM, DMD), sampler="consistency", guidance=w)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Consistency alone for as long as the recipe's first stage, then both, as they weigh at the published size."""
    scale = Scale.of(recipe)
    first = warmup(steps=scale.matching.steps // 5, w=scale.guidance)
    consistency = 100.0 if scale.elements is None else 100.0 * math.sqrt(scale.elements / PUBLISHED)
    both = rcm(shift=scale.shift, w=scale.guidance, consistency=consistency)
    return scale.regression(first), scale.alternating(both, 5)
