"""What the bench in the plane trains: AnyFlow and the baselines, from one start and teacher, at the scale of a recipe.

A method trains as its own `stages` say for that recipe. Where those are for latents of many elements, and wide modes,
the entry says what it has instead, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flowmap_consistency
from attrs import evolve, frozen
from flowmap_consistency import apt as apt_
from flowmap_consistency import consistency
from flowmap_consistency import dmd2 as dmd2_
from flowmap_consistency.scale import Scale

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import Data
from flowmap.methods import anyflow
from flowmap.plugins import manager, trained_by

from .mixture2d import Mixture2D

FORWARD_STEPS, FORWARD_LR = 6000, 1e-3
ON_POLICY_STEPS, ON_POLICY_LR, CRITIC_LR = 1000, 1e-4, 3e-4
BUDGETS = (1, 2, 4, 8, 16, 32, 64)
BATCH = 512
FORWARD = anyflow.forward(shift=1.0, guidance=1.0, drop=0.0, velocity="teacher")
ON_POLICY = partial(
    anyflow.on_policy,
    shift=1.0,
    guidance=1.0,
    teacher_guidance=1.0,
    drop=0.0,
    velocity="teacher",
    steps=BUDGETS,
)


def recipe(backbone: Mixture2D, data: Data | None = None, seed: int = 0) -> Recipe:
    """AnyFlow's own: both stages, velocities of the teacher; no shift, and nothing to guide by."""
    forward = AdamW(FORWARD_LR, (0.9, 0.99), warmup=100, schedule="cosine", floor=0.01)
    student = AdamW(ON_POLICY_LR, (0.0, 0.99), warmup=50, schedule="cosine", floor=0.1)
    critic = AdamW(CRITIC_LR, (0.0, 0.99), warmup=50)
    return Recipe(
        backbone,
        (
            Stage(FORWARD, FORWARD_STEPS, BATCH, optimizer=forward, ema=Ema(0.999, start=1000)),
            Stage(
                ON_POLICY(),
                ON_POLICY_STEPS,
                BATCH,
                optimizer={"student": student, "critic": critic},
                ema=Ema(0.99, start=100),
            ),
        ),
        data=data,
        seed=seed,
        name="any_step",
    )


# ---------------------------------------------------------------------------- what is compared

Stages = Callable[[Recipe], tuple[Stage, ...]]


@frozen
class Entry:
    """method: of `flowmap_stages`, or what makes the stages; None is the recipe's own.

    renoised: judge the same weights under the consistency sampler too.
    """

    name: str
    title: str
    family: str
    method: str | Stages | None = None
    renoised: bool = False

    def trained(self, found: Recipe) -> Recipe:
        """The recipe with the stages of this method."""
        if self.method is None:
            return found
        if isinstance(self.method, str):
            # by hand, not by entry points, so that a checkout which is not installed will do
            return trained_by(found, self.method, manager(flowmap_consistency, entry_points=False))
        return evolve(found, stages=self.method(found), name=f"{found.name}:{self.name}")


def forward_alone(found: Recipe) -> tuple[Stage, ...]:
    """Stage 1."""
    return found.stages[:1]


def without_cotraining(found: Recipe) -> tuple[Stage, ...]:
    """Stage 2 is then distribution matching alone."""
    first, second = found.stages
    return first, evolve(second, method=ON_POLICY(cotrain=0.0))


def from_data(found: Recipe) -> tuple[Stage, ...]:
    """Both stages, the velocity of each sample in place of the teacher's."""
    first, second = found.stages
    method = anyflow.forward(shift=1.0, guidance=1.0, drop=0.0, velocity="data")
    return evolve(first, method=method), evolve(second, method=ON_POLICY(velocity="data"))


GRID = 16
"""Of discrete consistency. What is known at t = 0 comes up the grid an interval at a time: in as many calls as others
have, 64 intervals leave the top of it unlearnt, and 16 of Heun's steps are as good as exact."""


def discrete(found: Recipe) -> tuple[Stage, ...]:
    method = consistency.consistency(grid=GRID, shift=1.0, w=1.0, solver=consistency.heun)
    return (Scale.of(found).regression(method),)


def training(found: Recipe) -> tuple[Stage, ...]:
    return (Scale.of(found).regression(consistency.training(grid=GRID, shift=1.0)),)


def latent(found: Recipe) -> tuple[Stage, ...]:
    """LCM with its neighbours as far apart as `GRID` has them, and not 20 of 1000; the rest is its own."""
    (first,) = consistency.lcm_stages(found)
    (update,) = first.method.updates
    ((weight, matching),) = update.terms
    assert isinstance(matching, consistency.DiscreteConsistency)
    wider = evolve(matching, times=consistency.Neighbours(1000, 1000 // GRID, 1.0))
    return (evolve(first, method=evolve(first.method, updates=(evolve(update, terms=((weight, wider),)),))),)


def apt(found: Recipe) -> tuple[Stage, ...]:
    """As published for images, σ = 0.01: at 0.1 the penalty asks for a judge that cannot see modes of width 0.08."""
    scale = Scale.of(found)
    first = scale.regression(apt_.initialisation(grid=GRID, shift=1.0, w=1.0))
    return first, scale.alternating(apt_.apt(shift=1.0, sigma=0.01), 1)


ANYFLOW, FLOW_MAPS, CONSISTENCY, MATCHING = "AnyFlow", "flow maps", "consistency", "distributions"
ENTRIES = (
    Entry("anyflow", "AnyFlow", ANYFLOW, renoised=True),
    Entry("anyflow_forward", "AnyFlow, stage 1 alone", ANYFLOW, forward_alone, renoised=True),
    Entry("anyflow_alone", "AnyFlow, no co-training", ANYFLOW, without_cotraining),
    Entry("anyflow_data", "AnyFlow, velocity of the data", ANYFLOW, from_data),
    Entry("meanflow", "MeanFlow", FLOW_MAPS, "meanflow"),
    Entry("improved_meanflow", "improved MeanFlow", FLOW_MAPS, "improved_meanflow"),
    Entry("ayf_emd", "AYF, Eulerian", FLOW_MAPS, "ayf_emd"),
    Entry("ayf_lmd", "AYF, Lagrangian", FLOW_MAPS, "ayf_lmd"),
    Entry("lsd", "LSD", FLOW_MAPS, "lsd"),
    Entry("esd", "ESD", FLOW_MAPS, "esd"),
    Entry("psd", "PSD", FLOW_MAPS, "psd"),
    Entry("shortcut", "Shortcut", FLOW_MAPS, "shortcut"),
    Entry("tvm", "TVM", FLOW_MAPS, "tvm"),
    Entry("consistency", "CD", CONSISTENCY, discrete),
    Entry("consistency_training", "CT", CONSISTENCY, training),
    Entry("lcm", "LCM", CONSISTENCY, latent),
    Entry("scm", "sCM", CONSISTENCY, "scm"),
    Entry("scm_training", "sCT", CONSISTENCY, "scm_training"),
    Entry("rcm", "rCM", CONSISTENCY, "rcm"),
    Entry("dmd2", "DMD2", MATCHING, "dmd2"),
    Entry("dmd2_32", "DMD2, 32 times", MATCHING, partial(dmd2_.stages, number=32)),
    Entry("apt", "APT", MATCHING, apt),
    Entry("phased_dmd", "Phased DMD, 4 phases", MATCHING, "phased_dmd"),
)
NAMES = {entry.name: entry for entry in ENTRIES}
