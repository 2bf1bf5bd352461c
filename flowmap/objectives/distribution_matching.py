"""Distribution matching on the student's own samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field, frozen

from .. import validators
from .._types import Batch, Latent, Mean, Rng, Role, Shared, Time
from ..path import expand, interpolate
from ..reweights import Reweight, reweighted
from ..rollout import FlowMapBackwardSimulation, Rollout
from ..times import Diagonal, LogitNormal, TimeSampler
from . import Loss, Networks, nonfinite


@frozen
class DistributionMatching:
    """Descend KL(student || teacher), DMD, arXiv:2311.18828, eqs. 7 and 8:

        g = (x̂_critic(z_t) - x̂_teacher(z_t)) / mean|x - x̂_teacher(z_t)|,   x = G_θ(ε),   loss = mean(x - sg(x - g))².

    w: the teacher's guidance, v_∅ + w (v_c - v_∅). floor: the least the normaliser may be. Where g is not finite the
    sample counts as zero, and `Loss.nonfinite` says whose output was not; where x itself is not, neither is the loss.
    Teacher and critic never build a graph: 1 F + 2 F, the two of guidance in one call. Keeps the samples for
    `CriticMatching`.
    """

    rollout: Rollout = FlowMapBackwardSimulation()
    times: TimeSampler = Diagonal(shift=5.0, low=0.02, high=0.98)
    w: float = field(default=4.0, validator=validators.ge(1.0))
    floor: float = field(default=1e-3, validator=validators.ge(0.0))

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", "teacher", "critic"})

    @property
    def guides(self) -> Mapping[Role, float]:
        return {"teacher": self.w}

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        x = self.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng)
        shared.keep(rng, x)
        with torch.no_grad():
            t, _ = self.times(len(x), rng, x)
            z, _ = interpolate(x, rng.noise_like(x), t)
        return matching(nets, batch, x, z, t, self.w, self.floor)


def matching(nets: Networks, batch: Batch, x: Latent, z: Latent, t: Time, w: float, floor: float) -> Loss:
    """`DistributionMatching` of samples x that are seen as z_t; gradient goes to x alone."""
    with torch.no_grad():
        fake = nets["critic"].denoise(z, t, batch.cond)
        real = nets["teacher"].denoise(z, t, batch.cond, batch.null, w)
        scale = (x - real).abs().flatten(1).mean(1).clamp_min(floor)
        g = (fake - real) / expand(scale, x)
        finite = g.isfinite().flatten(1).all(1)
        bad = nonfinite(student=x, teacher=real, critic=fake, direction=g)
        g = torch.where(expand(finite, x), g, torch.zeros_like(g))
    logs = {
        "dmd/gradient": Mean.of(g.abs().flatten(1).mean(1)),
        "sample/std": Mean.of(x.flatten(1).std(1, correction=0)),
    }
    value, told = (x - (x - g).detach()).square().mean(), x.detach().isfinite().flatten(1).all(1)
    return Loss(value, logs, told, bad)


@frozen
class CriticMatching:
    """Flow matching of the critic on the student's samples, so that it knows their score.

    rollout: None takes the samples that this iteration's `DistributionMatching` made; a rollout makes fresh ones.
    reweight: of a sample's loss, the mean square of its velocity's error.
    """

    rollout: Rollout | None = None
    times: TimeSampler = Diagonal(LogitNormal(), shift=5.0)
    reweight: tuple[Reweight, ...] = ()

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", "critic"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        x = shared.kept(rng)
        if self.rollout is not None:
            with torch.no_grad():
                x = self.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng)
        if x is None:
            raise ValueError(
                "CriticMatching.rollout = None needs the samples of a student update in the same iteration"
            )
        t, _ = self.times(len(x), rng, x)
        z, v = interpolate(x, rng.noise_like(x), t)
        raw = (nets["critic"].velocity(z, t, batch.cond) - v).square().flatten(1).mean(1)
        loss = reweighted(raw, t, t, self.reweight, shared)
        bad = nonfinite(student=x, critic=raw)
        return Loss(loss.mean(), {"loss": Mean.of(raw)}, raw.detach().isfinite(), bad)
