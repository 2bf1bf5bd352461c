"""sCM: continuous-time consistency models, arXiv:2410.11081."""

from __future__ import annotations

import math
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

from flowmap import Batch, Recipe, Rng, Stage, validators
from flowmap._types import Latent, Mean, Shared, Time
from flowmap.derivative import Derivative, ForwardMode
from flowmap.method import Method, Update
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.objectives.rounding import rounding
from flowmap.path import expand, interpolate
from flowmap.reweights import Ramp, Reweight, reweighted, unbalanced
from flowmap.times import Diagonal, LogitNormal, TimeSampler

from . import trigflow
from .along import ALONG, Along, AlongVelocity
from .citations import CONSISTENCY, SCM
from .scale import Scale


@frozen
class Prior:
    """1 / tan θ = (1 - t) / t: sCM's weight 1 / σ before what its network learns to divide by."""

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return (1 - t) / t


@frozen
class ContinuousConsistency(AlongVelocity):
    """The consistency function f = cos θ x_θ - sin θ F_θ, which is z_t - t u_θ(z_t, t, 0), does not change along dx/dθ:

        F_θ  ≈  sg[ F_θ + g / (‖g‖ + 0.1) ],      g = -a (F_θ - dx/dθ) - ρ (c s x_θ + T),      T = c s dF_θ/dθ.

    c, s = cos θ, sin θ. At ρ = 1, g = c df/dθ. While `warmup` lasts ρ rises from 0, where F_θ learns dx/dθ, to 1:
    form = "scm" has a = c² throughout, "rcm" a = c sqrt(1 - ρ² s²), which starts at c. ρ multiplies both terms (the
    released rCM has it on c s x_θ alone).

    dx/dθ is the teacher's velocity under guidance w, or with velocity = "data" that of the sample, cos θ ε - sin θ x,
    unguided. The norm is over all elements of a sample; the loss is the mean over elements. Samples with a g that is
    not finite count as zero, and `Loss.nonfinite` says whose output was not.

    sCM weighs by w(θ) e^-λ(θ) and learns λ beside. At its optimum, e^λ = w E‖·‖², every θ counts the same whatever w;
    with a normalised g, of norm about one, every θ counts the same without it, so λ is left out. `Prior` is w alone.

    Calls a sample: 1 G, 1 J of the student (2 F with differences), 2 F of the guided teacher.
    """

    times: TimeSampler = Diagonal(LogitNormal(-1.0, 1.4))
    derivative: Derivative = ForwardMode()
    velocity: Along = field(default="teacher", validator=validators.in_(ALONG))
    w: float = field(default=3.0, validator=validators.ge(1.0))
    warmup: Ramp = Ramp(10_000)
    form: Literal["scm", "rcm"] = field(default="scm", validator=validators.in_(("scm", "rcm")))
    reweight: tuple[Reweight, ...] = field(default=(), validator=unbalanced)

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u_θ = nets["student"]
        data, cond = u_θ.teacher_forcing(batch.x, batch.cond, rng)
        t, _ = self.times(len(batch), rng, data)
        r = torch.zeros_like(t)
        z, v = interpolate(data, rng.noise_like(data), t)
        c, s = trigflow.cos_sin(t, z)
        x = (c + s) * z

        u = u_θ(z, t, r, cond)
        F = trigflow.velocity(x, u, c, s)
        with torch.no_grad():
            if self.velocity == "teacher":
                v = nets["teacher"].velocity(z, t, cond, batch.null, self.w)
            dx = trigflow.velocity(x, v, c, s)
            dF = trigflow.derivative(x, dx, u, self.derivative(u_θ, z, t, r, v, cond), c, s)
            T = c * s * dF
            g = full = self.tangent(x, F, dx, T, c, s, self.warmup(shared.iteration))
            size = g.flatten(1).norm(dim=1)
            finite = size.isfinite()
            bad = nonfinite(**{"data": data, self.velocity: v}, student=size)
            g = torch.where(expand(finite, g), g / (expand(size, g) + 0.1), torch.zeros_like(g))
        raw = (F - (F + g).detach()).square().flatten(1).mean(1)
        loss = reweighted(raw, t, r, self.reweight, shared)
        logs = {"tangent": Mean.of(size / g[0].numel() ** 0.5, finite)}
        logs |= rounding(
            *(u_θ, z, rng, shared, T, full),
            lambda near: c * s * trigflow.derivative(x, dx, u, self.derivative(u_θ, near, t, r, v, cond), c, s),
        )
        return Loss(loss.mean(), logs, raw.detach().isfinite(), bad)

    def tangent(self, x: Latent, F: Latent, dx: Latent, T: Latent, c: Tensor, s: Tensor, ρ: float) -> Latent:
        """g, not normalised."""
        a = c**2 if self.form == "scm" else c * (1 - (ρ * s) ** 2).clamp_min(0).sqrt()
        return -a * (F - dx) - ρ * (c * s * x + T)


def scm(
    *,
    w: float = 3.0,
    mean: float = -1.0 + math.log(2),
    std: float = 1.4,
    warmup: int = 10_000,
    derivative: Derivative = ForwardMode(),  # noqa: B008, a frozen value
    reweight: tuple[Reweight, ...] = (),
) -> Method:
    """Distillation of the guided teacher; log tan θ ~ N(mean, std²) with tan θ = t / (1 - t): a logit-normal t.

    Published is N(-1, 1.4²) of log σ on data of standard deviation σ_d = ½, and tan θ = σ / σ_d; here σ_d is 1.
    """
    times = Diagonal(LogitNormal(mean, std))
    matching = ContinuousConsistency(times, derivative, "teacher", w, Ramp(warmup), "scm", reweight)
    return _method("scm", matching)


def training(
    *,
    mean: float = -1.0 + math.log(2),
    std: float = 1.4,
    warmup: int = 10_000,
    derivative: Derivative = ForwardMode(),  # noqa: B008, a frozen value
    reweight: tuple[Reweight, ...] = (),
) -> Method:
    """sCT: the same from data alone, without a teacher and without guidance."""
    times = Diagonal(LogitNormal(mean, std))
    matching = ContinuousConsistency(times, derivative, "data", 1.0, Ramp(warmup), "scm", reweight)
    return _method("scm_training", matching)


def _method(name: str, matching: ContinuousConsistency) -> Method:
    terms, citations = ((1.0, matching),), (SCM, CONSISTENCY)
    return Method(name, (Update("student", terms),), citations, sampler="consistency", guidance=matching.w)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage, ρ rising over a fifth of it; σ as rCM's, with more of it near pure noise."""
    scale = Scale.of(recipe)
    method = scm(w=scale.guidance, mean=0.7, std=1.6, warmup=scale.matching.steps // 5)
    return (scale.regression(method),)


def training_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As `stages`, without guidance: there is no teacher."""
    scale = Scale.of(recipe)
    return (scale.regression(training(mean=0.7, std=1.6, warmup=scale.matching.steps // 5)),)
