"""Discrete consistency distillation and training: consistency models, arXiv:2303.01469; LCM, arXiv:2310.04378."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor

from flowmap import Batch, Recipe, Rng, Stage, validators
from flowmap._types import Latent, Mean, Shared, Time
from flowmap.method import Method, Update
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.path import expand, interpolate
from flowmap.reweights import Reweight, reweighted, unbalanced
from flowmap.times import TimeSampler, euler_grid

from .along import ALONG, Along, AlongVelocity
from .citations import CONSISTENCY, IMPROVED, LCM
from .scale import Scale

Velocity: TypeAlias = Callable[[Latent, Time], Latent]  # (z, t) -> v


class Solver(Protocol):
    """One step of dz/dt = v from t down to r."""

    def __call__(self, v: Velocity, z: Latent, t: Time, r: Time) -> Latent: ...


def euler(v: Velocity, z: Latent, t: Time, r: Time) -> Latent:
    """Of first order: 1 call of v."""
    return z - expand(t - r, z) * v(z, t)


def heun(v: Velocity, z: Latent, t: Time, r: Time) -> Latent:
    """Of second order: 2 calls of v."""
    v_t, h = v(z, t), expand(t - r, z)
    return z - h / 2 * (v_t + v(z - h * v_t, r))


@frozen
class Neighbours:
    """(t, t') = (t_i, t_{i + skip}) on the shifted grid 1 = t_0 > ... > t_K = 0, i uniform and stratified."""

    grid: int = field(default=48, validator=validators.ge(1))
    skip: int = field(default=1, validator=validators.ge(1))
    shift: float = field(default=5.0, validator=validators.gt(0.0))

    def __attrs_post_init__(self) -> None:
        if self.skip > self.grid:
            raise ValueError(f"Neighbours.skip = {self.skip}: must be at most grid = {self.grid}")

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        points, last = euler_grid(self.grid, self.shift).to(like.device), self.grid - self.skip
        i = (rng.stratified(n, like) * (last + 1)).long().clamp_max(last)
        return points[i], points[i + self.skip]


@frozen
class PseudoHuber:
    """The factor with the gradient of sqrt(loss + c²) - c, of a loss that is a mean square. arXiv:2310.14189, eq. 7.

    c is compared with the root mean square of the elements; the paper's with their norm, which is sqrt(D) times that.
    """

    c: float = field(default=1e-3, validator=validators.gt(0.0))

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return 0.5 * (loss + self.c**2) ** -0.5


@frozen
class InverseGap:
    """1 / (t - t'): what a finer grid makes smaller is made as large again."""

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return 1 / (t - r)


@frozen
class DiscreteConsistency(AlongVelocity):
    """Neighbours on a trajectory have one end, arXiv:2303.01469, eqs. 7 and 10:

        x̂_θ(z_t, t)  ≈  sg[ x̂_θ(z_t', t') ],      x̂_θ(z, t) = z - t u_θ(z, t, 0),      x̂_θ(z, 0) = z.

    Distillation, velocity = "teacher": z_t' is one step of `solver` from z_t along the teacher's velocity under
    guidance w. Training, "data": z_t' = (1 - t') x + t' ε, of the same x and ε as z_t, unguided. The target network is
    the student as it is, without an average (arXiv:2310.14189, section 3.2). reweight: of the mean square, with
    (t, r) = (t, t').

    Calls a sample: 1 G + 1 F, and 2 F of the guided teacher for each of the solver's calls.
    """

    times: TimeSampler = Neighbours()
    velocity: Along = field(default="teacher", validator=validators.in_(ALONG))
    solver: Solver = euler
    w: float = field(default=3.0, validator=validators.ge(1.0))
    reweight: tuple[Reweight, ...] = field(default=(), validator=unbalanced)

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u_θ = nets["student"]
        x, c = u_θ.teacher_forcing(batch.x, batch.cond, rng)
        t, r = self.times(len(batch), rng, x)
        noise, zero = rng.noise_like(x), torch.zeros_like(t)
        z, _ = interpolate(x, noise, t)

        x_hat = u_θ.jump(z, t, zero, c)
        with torch.no_grad():
            if self.velocity == "teacher":
                z = self.solver(lambda z, t: nets["teacher"].velocity(z, t, c, batch.null, self.w), z, t, r)
            else:
                z, _ = interpolate(x, noise, r)
            y = u_θ.jump(z, r, zero, c)
        raw = (x_hat - y).square().flatten(1).mean(1)
        loss = reweighted(raw, t, r, self.reweight, shared)
        bad = nonfinite(**{"data": x, self.velocity: z}, student=raw)
        return Loss(loss.mean(), {"loss": Mean.of(raw)}, raw.detach().isfinite(), bad)


def consistency(
    *,
    grid: int = 48,
    skip: int = 1,
    shift: float = 5.0,
    w: float = 3.0,
    solver: Solver = euler,
    reweight: tuple[Reweight, ...] = (),
) -> Method:
    """Distillation, with the settings of the public causal port to Wan2.1 (FastVideo) but for its averaged target.

    There: lr 2e-6, 3000 iterations, a target averaged with 0.99 from iteration 200 on.
    """
    matching = DiscreteConsistency(Neighbours(grid, skip, shift), "teacher", solver, w, reweight)
    return _method("consistency", matching, (CONSISTENCY, IMPROVED))


def lcm(*, shift: float = 5.0, w: float = 3.0, c: float = 1e-3) -> Method:
    """Latent consistency models: 1000 times, neighbours 20 apart, pseudo-Huber loss.

    One w: LCM draws it for each sample and tells the network, which has no input for it here. Its step is DDIM's, which
    on z_t = (1 - t) x + t ε is Euler's.
    """
    matching = DiscreteConsistency(Neighbours(1000, 20, shift), "teacher", euler, w, (PseudoHuber(c),))
    return _method("lcm", matching, (LCM, CONSISTENCY))


def training(*, grid: int = 48, shift: float = 5.0, c: float = 1e-3) -> Method:
    """Consistency training: no teacher, and no guidance. Neighbours weigh by 1 / (t - t'), as in arXiv:2310.14189."""
    matching = DiscreteConsistency(Neighbours(grid, 1, shift), "data", euler, 1.0, (PseudoHuber(c), InverseGap()))
    return _method("consistency_training", matching, (CONSISTENCY, IMPROVED))


def _method(name: str, matching: DiscreteConsistency, citations: tuple[str, ...]) -> Method:
    terms = ((1.0, matching),)
    return Method(name, (Update("student", terms),), citations, sampler="consistency", guidance=matching.w)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage; every time of 1, 2, 4, ..., 32 or 64 steps is on the grid."""
    scale = Scale.of(recipe)
    return (scale.regression(consistency(grid=64, shift=scale.shift, w=scale.guidance)),)


def lcm_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage; so few iterations ask for a rounder loss than c = 0.001."""
    scale = Scale.of(recipe)
    return (scale.regression(lcm(shift=scale.shift, w=scale.guidance, c=0.1)),)


def training_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage, without its guidance: there is no teacher."""
    scale = Scale.of(recipe)
    return (scale.regression(training(shift=scale.shift)),)
