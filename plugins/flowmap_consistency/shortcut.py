"""Shortcut models, arXiv:2410.12557: a step is two steps of half its length, on the dyadic grid."""

from __future__ import annotations

import math
from typing import Literal

from flowmap import Recipe, Stage
from flowmap.guidance import Exact
from flowmap.method import Method, Update
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.objectives.mixture import Mixture
from flowmap.times import Diagonal, Dyadic

from .citations import SHORTCUT
from .scale import Scale
from .semigroup import Middle, SemigroupMatching


def shortcut(
    *,
    levels: int = 7,
    share: float = 0.125,
    shift: float = 1.0,
    w: float = 1.0,
    drop: float = 0.1,
    clip: float = 4.0,
    velocity: Literal["data", "teacher"] = "data",
) -> Method:
    """Flow matching, and of a `share` of the batch the steps 1, 1/2, ..., 2^(1 - levels) from their halves:

        u_θ(z, t, t - 2d)  ≈  sg[ u_θ(z, t, t - d) + u_θ(z', t - d, t - 2d) ] / 2,      z' = z - d u_θ(z, t, t - d).

    The halves of the shortest step are Euler steps of u_θ(z, t, t). 1 G, and 2 F of that share.

    The paper makes targets with an average of the weights, here with the weights. It has guidance in the targets of the
    shortest step alone; here in the velocity u_θ(z, t, t) already, so that many steps are guided too.
    """
    flow = FlowMapMatching(Diagonal(shift=shift), guidance=Exact(w, drop), velocity=velocity)
    halves = SemigroupMatching(
        Dyadic(levels, shift), Middle(shift, finest=2.0**-levels), guidance=Exact(w, drop), clip=clip
    )
    terms = ((1.0, Mixture(((1 - share, flow), (share, halves)))),)
    return Method("shortcut", (Update("student", terms),), (SHORTCUT,))


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage. 32 steps are the finest, a quarter of the batch are steps, none is clipped.

    Latents go beyond the published 4.
    """
    scale = Scale.of(recipe)
    method = shortcut(levels=5, share=0.25, shift=scale.shift, w=scale.guidance, velocity=scale.velocity, clip=math.inf)
    return (scale.regression(method),)
