"""Align Your Flow, arXiv:2506.14603: a teacher distilled into a flow map, in the start time or in the end time."""

from __future__ import annotations

from flowmap import Recipe, Stage
from flowmap.derivative import Derivative, EndDerivative, EndForwardMode, ForwardMode
from flowmap.guidance import Exact
from flowmap.method import Method, Update
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.reweights import Normalised, Ramp
from flowmap.times import Gap

from .citations import AYF
from .lagrangian import LagrangianMatching
from .scale import Scale


def emd(
    *,
    shift: float = 1.0,
    w: float = 2.0,
    warmup: int = 10_000,
    top: float = 0.99,
    c: float = 0.1,
    derivative: Derivative = ForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """Eulerian map distillation: 1 G and 1 J, 2 F of the guided teacher.

        u_θ  ≈  sg[ u_θ - g / (‖g‖ + c) ],      g = u_θ - v + ϱ (t - r) d/dt u_θ,      ϱ = min(top, iteration / warmup),

    with d/dt along v, the teacher's velocity. The paper guides it by a worse teacher, with a w drawn from [1, 3] that
    the network is told; here by the null condition, with one w. Its norm is over all elements, here a root mean square.
    """
    matching = FlowMapMatching(
        times=Gap(shift=shift),
        derivative=derivative,
        reweight=(Normalised(c),),
        guidance=Exact(w, drop=0.0),
        velocity="teacher",
        warmup=Ramp(warmup, top),
    )
    return Method("ayf_emd", (Update("student", ((1.0, matching),)),), (AYF,))


def lmd(
    *,
    shift: float = 1.0,
    w: float = 2.0,
    c: float = 0.1,
    derivative: EndDerivative = EndForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """Lagrangian map distillation: 1 G and 1 J, 2 F of the guided teacher.

        u_θ  ≈  sg[ u_θ - g / (‖g‖ + c) ],      g = ∂_r Φ_{r←t}(z_t) - v(Φ_{r←t}(z_t), r).

    In the paper better than `emd` in the plane, and much worse on images, which it smooths.
    """
    matching = LagrangianMatching(
        times=Gap(shift=shift),
        derivative=derivative,
        reweight=(Normalised(c),),
        guidance=Exact(w, drop=0.0),
        velocity="teacher",
        through=False,
    )
    return Method("ayf_lmd", (Update("student", ((1.0, matching),)),), (AYF,))


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage, ϱ rising over a fifth of it."""
    scale = Scale.of(recipe)
    return (scale.regression(emd(shift=scale.shift, w=scale.guidance, warmup=scale.matching.steps // 5)),)


def lmd_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage."""
    scale = Scale.of(recipe)
    return (scale.regression(lmd(shift=scale.shift, w=scale.guidance)),)
