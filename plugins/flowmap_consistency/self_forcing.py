"""Self-Forcing: a causal few-step student trained on its own rollouts, arXiv:2506.08009."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from attrs import field, frozen

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, Stage, validators
from flowmap._types import Latent, Mean, Role, Shared
from flowmap.chunked import HistoryGrad
from flowmap.guidance import Guided
from flowmap.method import Method, Update
from flowmap.methods.citations import DMD
from flowmap.objectives import Loss, Networks, OnTrajectories, nonfinite
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.rollout import ConsistencySimulation, euler_step
from flowmap.times import Diagonal, Steps, euler_grid

from .chunked import decreasing, draw, levels, sweep
from .citations import CAUSVID, DMD2, SELF_FORCING
from .scale import Scale

OPTIMIZER: Mapping[Role, AdamW] = {
    "student": AdamW(2e-6, (0.0, 0.999), weight_decay=0.01, clip=10.0),
    "critic": AdamW(4e-7, (0.0, 0.999), weight_decay=0.01, clip=10.0),
}
"""Published, with a global batch of 64, `Ema(0.99, 200)` and 600 iterations."""


@frozen
class TrajectoryRegression(OnTrajectories):
    """ODE initialisation, CausVid, arXiv:2412.07772, section 4.3: the end of the teacher's trajectory from its middle,

        z_t - t u_θ(z_t, t, 0)  ≈  z_0,       t one of `times`, for every chunk and sample on its own.

    The teacher goes from noise to data in `steps` Euler steps on the shifted grid under guidance w, stopping at `times`
    too, chunk after chunk where it is causal (Causal Forcing, arXiv:2602.02214). Of a teacher that makes all frames at
    once the end of a chunk is no function of its history and its own noise: a student in chunks learns the mean of it,
    of less variance than the data. It sees clean history, the trajectory's end. (CausVid's student sees the noisy
    states of earlier chunks.) Trajectories are made for every batch anew and none is seen twice, of the
    batch's prompts alone: 1 G, a sweep, and about 2 · steps F of the teacher a sample, where the papers store some
    thousand of them.
    """

    times: tuple[float, ...] = field(default=(1.0, 0.9375, 0.8333, 0.625), converter=levels, validator=decreasing)
    steps: int = field(default=50, validator=validators.ge(1))
    shift: float = field(default=5.0, validator=validators.gt(0.0))
    w: float = field(default=5.0, validator=validators.ge(1.0))

    from_data = False

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", "teacher"})

    @property
    def guides(self) -> Mapping[Role, float]:
        return {"teacher": self.w}

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u_θ, n = nets["student"], len(batch)
        theirs, own = nets["teacher"].chunks(batch.x.shape[1]), u_θ.chunks(batch.x.shape[1])
        if len(theirs) > 1 and theirs != own:
            raise ValueError(f"TrajectoryRegression: the teacher makes chunks of {theirs} frames: must be {own}")
        states, x = self.trajectory(nets["teacher"], rng.noise_like(batch.x), batch, rng)
        times, row = torch.tensor(self.times, device=x.device), torch.arange(n, device=x.device)
        sizes = u_θ.chunks(x.shape[1])
        which = [draw(n, times, rng) for _ in sizes]
        z = [part[i, row] for part, i in zip(states.split(sizes, dim=2), which, strict=True)]
        x_hat = sweep(u_θ, z, [times[i] for i in which], x, batch.cond)
        raw = (x_hat - x).square().flatten(1).mean(1)
        bad = nonfinite(teacher=x, student=raw)
        return Loss(raw.mean(), {"loss": Mean.of(raw)}, raw.detach().isfinite(), bad)

    @torch.no_grad()
    def trajectory(self, teacher: FlowMap, z: Latent, batch: Batch, rng: Rng) -> tuple[Latent, Latent]:
        """(z_t at every one of `times` [K, B, ...], z_0)."""
        u, stops = Guided(teacher, self.w, batch.null), torch.tensor(self.times)
        grid = torch.cat([euler_grid(self.steps, self.shift), stops]).unique().flip(0)
        states: list[list[Latent]] = [[] for _ in self.times]
        x: list[Latent] = []
        cache = None
        for chunk in z.split(u.chunks(z.shape[1]), dim=1):
            cache, z = u.extend(cache, x[-1], batch.cond) if x else None, chunk
            passed = iter(states)
            for t, r in pairwise(grid):
                if t in stops:
                    next(passed).append(z)
                now, then = (s.to(z.device).expand(len(z)) for s in (t, r))
                z = euler_step(u, z, now, then, batch.cond, cache, rng)
            x.append(z)
        return torch.stack([torch.cat(parts, 1) for parts in states]), torch.cat(x, 1)


def ode_init(*, number: int = 4, shift: float = 5.0, steps: int = 50, w: float = 5.0) -> Method:
    """The stage before: regress the student on the teacher's trajectories; `number` times, those of the rollout."""
    return initialisation(step_list(number, shift), shift, steps, w, (SELF_FORCING, CAUSVID))


def initialisation(times: tuple[float, ...], shift: float, steps: int, w: float, citations: tuple[str, ...]) -> Method:
    regression = TrajectoryRegression(times, steps, shift, w)
    updates = (Update("student", ((1.0, regression),)),)
    return Method("ode_init", updates, citations, sampler="consistency", guidance=w)


def step_list(number: int, shift: float) -> tuple[float, ...]:
    """shift(1 - i / number): (1, 0.9375, 0.8333, 0.625) of 4 and 5."""
    return tuple(euler_grid(number, shift)[:-1].tolist())


def self_forcing(
    *,
    number: Steps = 4,
    shift: float = 5.0,
    w: float = 4.0,
    every: int = 5,
    replay: bool = False,
    history_grad: HistoryGrad = False,
    history_noise: float = 0.0,
) -> Method:
    """After `ode_init`: DMD on whole videos that the student made chunk after chunk, of prompts alone.

    A rollout ends at one of its `number` steps, drawn once for all chunks; that jump alone has a gradient, and finished
    chunks become history without one, as published; `history_grad` gives it one, see `self_gradient_forcing`, and
    `history_noise` noises it again to that time, in samples too.
    number: or of each chunk its own, (4, 2), of which the last repeats (Causal-rCM, arXiv:2606.25473). w = 4 is the
    reference's "3.0". The critic learns in every iteration from samples of its own, the student in one of
    `every`. `replay`: hold the graph of one chunk at a time, for a second forward pass.

    Calls a sample and `every` = 5 iterations: 1 G + 1.5 F and 5 · 2.5 F of the student, 2 F of the teacher, 1 F + 5 G
    of the critic, and 6 times a sweep that encodes finished chunks, without the last.
    """
    times = step_list(number, shift) if isinstance(number, int) else tuple(step_list(n, shift) for n in number)
    rollout = ConsistencySimulation(times, replay, history_grad, history_noise)
    asked = Diagonal(shift=shift, low=0.02, high=0.98)
    matching = DistributionMatching(rollout, asked, w, floor=0.0)
    updates = (
        Update("student", ((0.5, matching),), every=every),
        Update("critic", ((1.0, CriticMatching(rollout, asked)),)),
    )
    return Method("self_forcing", updates, (SELF_FORCING, DMD2, DMD), sampler="consistency", guidance=w)


def stages(recipe: Recipe, number: int = 4) -> tuple[Stage, ...]:
    """Trajectories of 16 steps for a fifth of the iterations of the recipe's first stage, each some six times as dear;
    then as many student updates as its last."""
    scale = Scale.of(recipe)
    first = ode_init(number=number, shift=scale.shift, steps=16, w=scale.guidance)
    second = self_forcing(number=number, shift=scale.shift, w=scale.guidance)
    return scale.regression(first, share=0.2), scale.alternating(second, 5)
