"""MeanFlow and improved MeanFlow, which are the core's, at the scale of a recipe."""

from __future__ import annotations

from flowmap import Recipe, Stage
from flowmap.methods import meanflow

from .scale import Scale


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage. Half of the batch is on the diagonal."""
    scale = Scale.of(recipe)
    method = meanflow.meanflow(diagonal=0.5, shift=scale.shift, w=scale.guidance, velocity=scale.velocity)
    return (scale.regression(method),)


def improved_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage. With a teacher's velocity it differs from `stages` in the tangent alone."""
    scale = Scale.of(recipe)
    return (scale.regression(meanflow.improved(shift=scale.shift, w=scale.guidance, velocity=scale.velocity)),)
