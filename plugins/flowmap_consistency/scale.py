"""At which scale a recipe trains, so that another method may train at it too."""

from __future__ import annotations

import math
from typing import Literal

from attrs import evolve, frozen

from flowmap import AdamW, Ema, Recipe, Stage, TensorData
from flowmap._types import Role
from flowmap.evaluation import QualityCurve
from flowmap.method import Method
from flowmap.objectives.flow_map_matching import FlowMapMatching


@frozen
class Scale:
    """What a recipe says of size, whatever its method.

    shift: of the backbone's grid. guidance: what the recipe's own student has built in. velocity: whose it learns from,
    the teacher's or the data's. matching: steps, batch, optimiser and average of a regression, those of its first stage
    with a student. on_policy: of a student that learns from what it made and of its critic, those of its last stage
    with a critic. elements: of a latent, where the recipe's evaluation or its tensors say it.
    """

    shift: float
    guidance: float
    velocity: Literal["data", "teacher"]
    matching: Stage
    on_policy: Stage
    elements: int | None

    @classmethod
    def of(cls, recipe: Recipe) -> Scale:
        stages = [stage for stage in recipe.stages if "student" in stage.method.trains]
        if not stages:
            raise ValueError(
                f"the recipe {recipe.name or recipe.backbone} trains no student: there is no scale to take"
            )
        critics = [stage for stage in stages if "critic" in stage.method.trains]
        own = _matching(recipe)
        return cls(
            shift=recipe.backbone.shift,
            guidance=own.guidance.w,
            velocity="teacher" if own.velocity == "teacher" else "data",
            matching=stages[0],
            on_policy=critics[-1] if critics else _derived(stages[0]),
            elements=_elements(recipe),
        )

    def regression(self, method: Method, share: float = 1.0) -> Stage:
        """A stage of a method without a critic, `share` times as long as the recipe's own."""
        steps = max(1, round(share * self.matching.steps))
        return evolve(self.matching, method=method, steps=steps, optimizer=_student(self.matching))

    def alternating(self, method: Method, ratio: int) -> Stage:
        """A stage of a method whose student learns in one of `ratio` iterations: as many of its updates as there."""
        return evolve(self.on_policy, method=method, steps=ratio * self.on_policy.steps)


def _elements(recipe: Recipe) -> int | None:
    if isinstance(recipe.evaluation, QualityCurve):
        return math.prod(recipe.evaluation.shape)
    return math.prod(recipe.data.x.shape[1:]) if isinstance(recipe.data, TensorData) else None


def _matching(recipe: Recipe) -> FlowMapMatching:
    """The last flow-map matching of its student."""
    terms = [o for stage in recipe.stages for update in stage.method.updates for _, o in update.terms]
    found = [o for o in terms if isinstance(o, FlowMapMatching) and o.role == "student"]
    return found[-1] if found else FlowMapMatching()


def _student(stage: Stage) -> AdamW:
    settings = stage.optimizer_of("student")
    assert settings is not None  # Stage checks it
    return settings


def _derived(stage: Stage) -> Stage:
    """Of a recipe without a critic: a sixth of the steps, a tenth of the rate, three times that for the critic."""
    own = _student(stage)
    warmup = min(own.warmup, stage.steps // 60)
    student = evolve(own, lr=own.lr / 10, betas=(0.0, own.betas[1]), warmup=warmup)
    optimizer: dict[Role, AdamW] = {
        "student": student,
        "critic": evolve(student, lr=3 * student.lr, schedule="constant"),
    }
    return evolve(stage, steps=max(1, stage.steps // 6), optimizer=optimizer, ema=Ema(0.98, start=50))
