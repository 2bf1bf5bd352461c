"""Distribution matching on the student's own samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field, frozen

from .. import validators
from .._types import Batch, Latent, Mean, Rng, Role, Shared, Time
from ..path import expand, interpolate, renoise, state_from_velocity, sub_velocity
from ..reweights import Reweight, reweighted
from ..rollout import FlowMapBackwardSimulation, Rollout
from ..times import ALL, Diagonal, LogitNormal, TimeSampler
from . import Loss, Networks, nonfinite

below_one = validators.and_(validators.ge(0.0), validators.lt(1.0))


@frozen
class DistributionMatching:
    """Descend KL(student || teacher), DMD, arXiv:2311.18828, eqs. 7 and 8:

        g = (x̂_critic(z_t) - x̂_teacher(z_t)) / mean|x - x̂_teacher(z_t)|,   x = G_θ(ε),   loss = mean(x - sg(x - g))².

    w: the teacher's guidance, v_∅ + w (v_c - v_∅). floor: the least the normaliser may be. Where g is not finite the
    sample counts as zero, and `Loss.nonfinite` says whose output was not; where x itself is not, neither is the loss.
    Teacher and critic never build a graph: 1 F + 2 F, the two of guidance in one call. Keeps the samples for
    `CriticMatching`.

    end: the time s of the rollout's samples, where they are noisy ones, z_s, of the high one of two experts. Then t
    lies above s, z_t = a z_s + b ε is `renoise`d from there, and E[z_s | z_t] takes the place of both x̂: the same
    descent, of KL(p_s^student || p_s^teacher). Nothing is asked at a time below s.

    one_pass: the critic is asked with a graph, which `CriticMatching` of the same field learns from in the same
    iteration: 1 G in place of 1 F here and 1 G there. It is held in between, beside the student's. In one process.
    """

    rollout: Rollout = FlowMapBackwardSimulation()
    times: TimeSampler = Diagonal(shift=5.0, low=0.02, high=0.98)
    w: float = field(default=4.0, validator=validators.ge(1.0))
    floor: float = field(default=1e-3, validator=validators.ge(0.0))
    end: float = field(default=0.0, validator=below_one)
    one_pass: bool = False

    def __attrs_post_init__(self) -> None:
        _ends(self, self.rollout)

    from_data = False

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
            noise = rng.noise_like(x)
            z = noisier(x, noise, self.end, t)
        v = self._pass(nets, batch, z, t, noise, rng, shared) if self.one_pass else None
        return matching(nets, batch, x, z, t, self.w, self.floor, self.end, v)

    @staticmethod
    def _pass(nets: Networks, batch: Batch, z: Latent, t: Time, noise: Latent, rng: Rng, shared: Shared) -> Latent:
        """The critic's velocity, with the graph that `CriticMatching` learns from."""
        if shared.ranks > 1:
            raise ValueError(
                f"DistributionMatching.one_pass = True with a batch in {shared.ranks} parts: must be False where "
                "several processes train, which was not tried"
            )
        v = nets["critic"].velocity(z, t, batch.cond)
        shared.keep_pass(rng, t, noise, v)
        return v


def noisier(x: Latent, noise: Latent, s: float, t: Time) -> Latent:
    """z_t of z_s = x."""
    return renoise(x, noise, torch.full_like(t, s), t) if s else interpolate(x, noise, t)[0]


def matching(
    nets: Networks,
    batch: Batch,
    x: Latent,
    z: Latent,
    t: Time,
    w: float,
    floor: float,
    end: float = 0.0,
    v: Latent | None = None,
) -> Loss:
    """`DistributionMatching` of samples x at the time `end` that are seen as z_t; gradient goes to x alone.

    v: the critic's velocity there, where it is known.
    """
    with torch.no_grad():
        v = nets["critic"].velocity(z, t, batch.cond) if v is None else v
        fake = state_from_velocity(z, v, t, end)
        real = state_from_velocity(z, nets["teacher"].velocity(z, t, batch.cond, batch.null, w), t, end)
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

    end: the time s of the samples, as in `DistributionMatching`. The velocity of what is made noisier from there is
    `sub_velocity`, -z_s / (1 - s) + b' ε, and its error counts by 1 / b'², so that the target's noise, which grows near
    s, is that of ε at every t. At s = 0, b' = 1.

    one_pass: of the pass that `DistributionMatching` made, at its times; `times` is not read.
    """

    rollout: Rollout | None = None
    times: TimeSampler = Diagonal(LogitNormal(), shift=5.0)
    reweight: tuple[Reweight, ...] = ()
    end: float = field(default=0.0, validator=below_one)
    one_pass: bool = False

    def __attrs_post_init__(self) -> None:
        _ends(self, self.rollout)
        if self.one_pass and self.rollout is not None:
            raise ValueError(
                "CriticMatching.one_pass = True: must be False where it has a rollout of its own, whose samples the "
                "student's update does not see"
            )

    from_data = False

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
        if (made := shared.kept_pass(rng) if self.one_pass else None) is not None:
            t, noise, own = made
            _, v, slope = self._target(x, noise, t)
        elif self.one_pass:
            raise ValueError(
                "CriticMatching.one_pass = True needs a DistributionMatching with it in the same iteration, which sees "
                "the same micro-batches"
            )
        else:
            t, _ = self.times(len(x), rng, x)
            z, v, slope = self._target(x, rng.noise_like(x), t)
            own = nets["critic"].velocity(z, t, batch.cond)
        raw = (own - v).square().flatten(1).mean(1) / slope**2
        loss = reweighted(raw, t, t, self.reweight, shared)
        bad = nonfinite(student=x, critic=raw)
        return Loss(loss.mean(), {"loss": Mean.of(raw)}, raw.detach().isfinite(), bad)

    def _target(self, x: Latent, noise: Latent, t: Time) -> tuple[Latent, Latent, Time | float]:
        """(z_t, its velocity, b')."""
        if not self.end:
            return *interpolate(x, noise, t), 1.0
        s = torch.full_like(t, self.end)
        z, v, b = sub_velocity(x, noise, s, t)
        return z, v, (t + (1 - t) * (s / (1 - s)) ** 2) / b


def _ends(instance: DistributionMatching | CriticMatching, rollout: Rollout | None) -> None:
    """A ValueError where the samples are not at the time that the objective takes them to be at.

    A rollout ends in data, at 0; one that has `within`, at the lower of these times.
    """
    if rollout is None:
        return
    low, _ = getattr(rollout, "within", ALL)
    if low != instance.end:
        name, made = type(instance).__name__, type(rollout).__name__
        raise ValueError(f"{name}.end = {instance.end}: must be {low}, where its rollout ends, a {made}")
