"""Phased DMD: distribution matching phase by phase, each on its own piece of the noise levels, arXiv:2510.27684."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, Stage, validators
from flowmap._types import Cache, Cond, Latent, Mean, Role, Shared, Time
from flowmap.method import Method, Update
from flowmap.methods.citations import DMD
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.objectives.distribution_matching import matching
from flowmap.path import renoise, sub_velocity, unshift
from flowmap.path import shift as shifted
from flowmap.times import Density, Uniform, share

from .citations import DMD2, PHASED_DMD
from .scale import Scale
from .self_forcing import step_list

OPTIMIZER: Mapping[Role, AdamW] = {
    "student": AdamW(5e-5, (0.0, 0.999)),
    "critic": AdamW(4e-7, (0.0, 0.999)),
}
"""Published with adapters of rank 64 and α = 8 on the student, a whole critic and a global batch of 64."""


def _phases(times: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(phase) for phase in times)


def _numbers(train: Sequence[int]) -> tuple[int, ...]:
    return tuple(train)


@frozen
class Phases:
    """The noise levels of a walk, phase by phase: from each level τ of a phase to its end s, and back up to the next τ.

    The end of a phase is where the next one begins; of the last, 0. So a step is a jump s <- τ that training has seen,
    and a phase is to s what the consistency sampler is to 0. `step` is that sampler, for `flowmap.sample`.
    """

    times: tuple[tuple[float, ...], ...] = field(default=((1.0, 0.9375), (0.8333, 0.625)), converter=_phases)

    @times.validator
    def _decreasing(self, attribute: object, times: tuple[tuple[float, ...], ...]) -> None:
        levels = [t for phase in times for t in phase]
        if not levels or not all(times) or levels[0] != 1.0 or any(a <= b for a, b in pairwise((*levels, 0.0))):
            raise ValueError(f"Phases.times = {times}: must decrease strictly from 1.0 and stay above 0")

    @property
    def ends(self) -> tuple[float, ...]:
        """s of every phase."""
        return (*(phase[0] for phase in self.times[1:]), 0.0)

    def step(self, u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
        """From t to the end of its phase, then up to r by noise where r is above it."""
        ends = torch.tensor(self.ends, device=t.device)
        s = torch.minimum(r, (ends * (ends < t[:, None])).amax(1))
        return renoise(u.jump(z, t, s, cond, cache), rng.noise_like(z), s, r)

    def rollout(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng, phase: int) -> Latent:
        """x_s: all phases before `phase`, then this one up to a random level, and the jump to its end.

        That jump alone is differentiable. Chunks come after finished chunks, which are walked on to data.
        """
        count = 1 + rng.randint(len(self.times[phase]))
        before = [t for earlier in self.times[:phase] for t in earlier]
        down = [*before, *self.times[phase][:count], self.ends[phase]]
        on = [t for later in self.times[phase + 1 :] for t in later] + [0.0]
        chunks = noise.split(u.chunks(noise.shape[1]), dim=1)
        cache: Cache = None
        made: list[Latent] = []
        for k, z in enumerate(chunks):
            own = rng.fork(k)
            with torch.no_grad():
                z = self._walk(u, z, down[:-1], cond, cache, own)
            made.append(self._walk(u, z, down[-2:], cond, cache, own))
            if k + 1 < len(chunks):
                with torch.no_grad():
                    cache = u.extend(cache, self._walk(u, made[-1].detach(), on, cond, cache, own), cond)
        return torch.cat(made, dim=1)

    def _walk(self, u: FlowMap, z: Latent, levels: Sequence[float], cond: Cond, cache: Cache, rng: Rng) -> Latent:
        for t, r in pairwise(torch.tensor(levels, device=z.device)):
            z = self.step(u, z, t.expand(len(z)), r.expand(len(z)), cond, cache, rng)
        return z


@frozen
class Above:
    """Where a phase that ends at s is judged: t in (s, 1), the part of the shifted `density` that lies there.

    Of the way from s to 1 the first `low` and what is above `high` are left out.
    """

    density: Density = Uniform()
    shift: float = field(default=5.0, validator=validators.gt(0.0))
    low: float = field(default=0.02, validator=share)
    high: float = field(default=0.98, validator=share)

    def __attrs_post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"Above.low = {self.low}: must be below high = {self.high}")

    def __call__(self, n: int, rng: Rng, like: Tensor, s: float) -> Time:
        first = unshift(torch.tensor(s, device=like.device), self.shift)
        t = shifted(first + (1 - first) * self.density(n, rng, like), self.shift)
        return t.clamp(s + self.low * (1 - s), s + self.high * (1 - s))


@frozen
class PhaseMatching:
    """`DistributionMatching` of a phase's noisy samples x_s, seen at t in (s, 1) as x_t = a x_s + b ε:

        g = (x̂_critic(x_t) - x̂_teacher(x_t)) / mean|x_s - x̂_teacher(x_t)|,     loss = mean(x_s - sg(x_s - g))².

    train: the phases, from 0, of which one is drawn each time.
    """

    phases: Phases = Phases()
    train: tuple[int, ...] = field(default=(0,), converter=_numbers)
    times: Above = Above()
    w: float = field(default=4.0, validator=validators.ge(1.0))
    floor: float = field(default=0.0, validator=validators.ge(0.0))

    @train.validator
    def _some(self, attribute: object, train: tuple[int, ...]) -> None:
        _in(self, self.phases, train)

    from_data = False

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", "teacher", "critic"})

    @property
    def guides(self) -> Mapping[Role, float]:
        return {"teacher": self.w}

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        phase = self.train[rng.randint(len(self.train))]
        x = self.phases.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng, phase)
        with torch.no_grad():
            s = self.phases.ends[phase]
            t = self.times(len(x), rng, x, s)
            z = renoise(x, rng.noise_like(x), torch.full_like(t, s), t)
        return matching(nets, batch, x, z, t, self.w, self.floor)


@frozen
class PhaseCritic:
    """The critic learns the velocity of the diffusion whose samples at s are the student's x_s, from t in (s, 1):

        loss = E clamp(1 / b², 0, most) |v_critic(x_t, t) - v_sub|².

    With v_sub as in `sub_velocity`, a clean sample is asked for nowhere. Near s the noise of the target grows as 1 / b²
    too, and those samples drown the others; as b <= 1, `most` = 1 is no weight.
    """

    phases: Phases = Phases()
    train: tuple[int, ...] = field(default=(0,), converter=_numbers)
    times: Above = Above()
    most: float = field(default=10.0, validator=validators.gt(0.0))

    @train.validator
    def _some(self, attribute: object, train: tuple[int, ...]) -> None:
        _in(self, self.phases, train)

    from_data = False

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", "critic"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        phase = self.train[rng.randint(len(self.train))]
        with torch.no_grad():
            x = self.phases.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng, phase)
            s = self.phases.ends[phase]
            t = self.times(len(x), rng, x, s)
            z, v, b = sub_velocity(x, rng.noise_like(x), torch.full_like(t, s), t)
        raw = (nets["critic"].velocity(z, t, batch.cond) - v).square().flatten(1).mean(1)
        value, bad = (b**-2).clamp_max(self.most).mul(raw).mean(), nonfinite(student=x, critic=raw)
        return Loss(value, {"loss": Mean.of(raw)}, raw.detach().isfinite(), bad)


def _in(instance: object, phases: Phases, train: tuple[int, ...]) -> None:
    if not train or not {*train} <= {*range(len(phases.times))}:
        raise ValueError(
            f"{type(instance).__name__}.train = {train}: must name phases, of 0 to {len(phases.times) - 1}"
        )


def phased_dmd(
    *,
    train: tuple[int, ...] = (0,),
    phases: int = 2,
    number: int = 4,
    shift: float = 5.0,
    w: float = 4.0,
    every: int = 5,
    most: float = 10.0,
) -> Method:
    """The phases `train`, from 0, of `phases` that share `number` steps evenly.

    The paper trains one phase after the other, a stage each, every one an expert of its own (or a set of adapters),
    which starts from the frozen experts before it, with a critic that starts again from the teacher. Here one network
    u(z, t, r) serves all: it is told the phase by its times (τ, s), and the phases before are its own as it is now. So
    nothing has to choose an expert or to be saved K times, but a later phase may undo an earlier one: train both in a
    later stage, `train=(0, 1)`, one of which is drawn each time. The critic goes on from the phase before, and with
    several it models their mixture, which is right where each is: all phases have the teacher's marginals at t then.

    Nothing between noise and s is supervised by a clean sample, and the low-noise phases never see pure noise. With one
    step a phase the student is sampled along the flow, in `number` steps; with more, by `Phases.step`: its jumps all
    end where a phase does.

    Calls a sample and `every` = 5 iterations, first phase of two, two steps each: 1 G + 0.5 F and 5 · 1.5 F of the
    student, 2 F of the teacher, 1 F + 5 G of the critic; 6 times 2 F more for each phase before. For each chunk but the
    last, the phases after it too, so that history is clean.
    """
    if phases < 1 or number % phases:
        raise ValueError(f"phased_dmd(number={number}, phases={phases}): phases must be at least 1 and divide number")
    levels, size = step_list(number, shift), number // phases
    parts = Phases([levels[i : i + size] for i in range(0, number, size)])
    student = PhaseMatching(parts, train, Above(shift=shift), w)
    critic = PhaseCritic(parts, train, Above(shift=shift), most)
    updates = (Update("student", ((0.5, student),), every=every), Update("critic", ((1.0, critic),)))
    return Method("phased_dmd", updates, (PHASED_DMD, DMD2, DMD), guidance=w)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Four phases of one step, a stage each, which train the phases before it on.

    So the student is sampled along the flow, in 4 steps. Together they have as many updates of the student as the
    recipe's own on-policy stage.
    """
    scale = Scale.of(recipe)
    part = evolve(scale, on_policy=evolve(scale.on_policy, steps=max(1, scale.on_policy.steps // 4)))
    return tuple(
        part.alternating(phased_dmd(train=tuple(range(k + 1)), phases=4, shift=scale.shift, w=scale.guidance), 5)
        for k in range(4)
    )
