"""CausVid: asymmetric distribution matching on noised real videos, arXiv:2412.07772."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve, field, frozen

from flowmap import AdamW, Batch, Recipe, Rng, Stage
from flowmap._types import Role, Shared
from flowmap.method import Method, Update
from flowmap.methods.citations import DMD
from flowmap.objectives import Loss, Networks, guides
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.times import Diagonal

from .chunked import NoisedData, decreasing, levels
from .citations import CAUSVID, DMD2
from .scale import Scale
from .self_forcing import initialisation, step_list

OPTIMIZER: Mapping[Role, AdamW] = {role: AdamW(2e-6, (0.9, 0.999)) for role in ("student", "critic")}
"""Published for the student, and taken for the critic; `ode_init` before it took 3000 iterations, 1500 trajectories."""


@frozen
class OnNoisedData:
    """`objective` on what the student makes of noised data in one call, in place of its rollout from noise.

    A chunk of x is noised to one of `times`, drawn for every chunk and sample on its own; see `NoisedData`. The
    history is clean data. (CausVid's student sees the noised earlier chunks.)
    """

    objective: DistributionMatching | CriticMatching
    times: tuple[float, ...] = field(default=(1.0, 0.757, 0.522), converter=levels, validator=decreasing)

    @property
    def needs(self) -> frozenset[Role]:
        return self.objective.needs

    @property
    def guides(self) -> Mapping[Role, float]:
        return guides((self.objective,))

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        return evolve(self.objective, rollout=NoisedData(self.times, batch.x))(nets, batch, rng, shared)


TIMES = (1.0, 0.757, 0.522)
"""The published list without its 0, whose chunks are real videos that count for nothing."""


def ode_init(*, times: tuple[float, ...] = TIMES, shift: float = 8.0, steps: int = 50, w: float = 5.0) -> Method:
    """The stage before: regress the student on the teacher's trajectories at `times`."""
    return initialisation(times, shift, steps, w, (CAUSVID,))


def causvid(*, times: tuple[float, ...] = TIMES, shift: float = 8.0, w: float = 4.5, every: int = 5) -> Method:
    """After `ode_init`: a causal student and a bidirectional teacher, which judges the whole video.

    w = 4.5 is the reference's "3.5". The critic learns in every iteration, the student in one of `every`.

    Calls a sample and `every` = 5 iterations: 1 G and 5 F of the student, sweeps both, 2 F of the teacher, 1 F + 5 G of
    the critic.
    """
    law = Diagonal(shift=shift, low=0.02, high=0.98)
    matching = OnNoisedData(DistributionMatching(times=law, w=w, floor=0.0), times)
    critic = OnNoisedData(CriticMatching(times=law), times)
    updates = (Update("student", ((0.5, matching),), every=every), Update("critic", ((1.0, critic),)))
    return Method("causvid", updates, (CAUSVID, DMD2, DMD), sampler="consistency", guidance=w)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As Self-Forcing's."""
    scale = Scale.of(recipe)
    times = step_list(4, scale.shift)
    first = ode_init(times=times, shift=scale.shift, steps=16, w=scale.guidance)
    second = causvid(times=times, shift=scale.shift, w=scale.guidance)
    return scale.regression(first, share=0.2), scale.alternating(second, 5)
