"""Self-distillation of flow maps, arXiv:2505.18825: flow matching, and one of three identities for the rest.

The student's own velocity u_θ(z, t, t), which flow matching teaches on most of the batch, takes the teacher's place in

    LSD    ∂_r Φ_{r←t}(z_t)  =  v(Φ_{r←t}(z_t), r)                              Lagrangian
    ESD    u(z_t, t, r)      =  v(z_t, t) - (t - r) d/dt u(z_t, t, r)           Eulerian
    PSD    Φ_{r←t}           =  Φ_{r←s} Φ_{s←t}                                 progressive

The paper weighs by e^-λ(t, r) with a λ that is learnt, for which a method has no parameters here. Its optimum,
e^λ = E[loss | t, r], weighs every pair the same; so does the adaptive loss with p = 1, sample by sample, but that is
biased where the target is noisy, and with so much weight on its own targets a student in the plane diverges.
p = 0 weighs nothing; p = 1/2, between the two, is better there where the velocity is a teacher's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from flowmap import Recipe, Stage
from flowmap.derivative import Derivative, EndDerivative, EndForwardMode, ForwardMode
from flowmap.guidance import Exact
from flowmap.method import Method, Update
from flowmap.objectives import Objective
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.objectives.mixture import Mixture
from flowmap.reweights import Adaptive, Reweight
from flowmap.times import Diagonal, Triangle

from .citations import FLOW_MAP_MATCHING, SELF_DISTILLATION
from .lagrangian import LagrangianMatching
from .scale import Scale
from .semigroup import Anywhere, Middle, SemigroupMatching, Split

Velocity: TypeAlias = Literal["data", "teacher"]


def lsd(
    *,
    diagonal: float = 0.75,
    shift: float = 1.0,
    w: float = 1.0,
    drop: float = 0.1,
    velocity: Velocity = "data",
    p: float = 0.0,
    c: float = 1e-3,
    derivative: EndDerivative = EndForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """Lagrangian: 1 G on the diagonal, elsewhere 1 GJ and 1 F. The most stable of the three, says the paper."""
    rest = LagrangianMatching(Triangle(0.0, 0.0, shift), derivative, _weigh(p, c), Exact(w, drop))
    return _method("lsd", diagonal, _flow(shift, w, drop, velocity, p, c), rest)


def esd(
    *,
    diagonal: float = 0.75,
    shift: float = 1.0,
    w: float = 1.0,
    drop: float = 0.1,
    velocity: Velocity = "data",
    p: float = 0.0,
    c: float = 1e-3,
    derivative: Derivative = ForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """Eulerian, its derivative without a gradient: 1 G on the diagonal, elsewhere 1 G, 1 J and 1 F.

    With ε - x for v it is MeanFlow, and with ε - x outside of the derivative improved MeanFlow.
    """
    rest = FlowMapMatching(Triangle(0.0, 0.0, shift), derivative, _weigh(p, c), Exact(w, drop), velocity="student")
    return _method("esd", diagonal, _flow(shift, w, drop, velocity, p, c), rest)


def psd(
    *,
    diagonal: float = 0.75,
    shift: float = 1.0,
    w: float = 1.0,
    drop: float = 0.1,
    velocity: Velocity = "data",
    p: float = 0.0,
    c: float = 1e-3,
    split: Literal["middle", "anywhere"] = "middle",
) -> Method:
    """Progressive: 1 G on the diagonal, elsewhere 1 G and 2 F. s halfway between t and r, or uniform between them."""
    cut: Split = Middle(shift) if split == "middle" else Anywhere()
    rest = SemigroupMatching(Triangle(0.0, 0.0, shift), cut, _weigh(p, c), Exact(w, drop))
    return _method("psd", diagonal, _flow(shift, w, drop, velocity, p, c), rest)


def _weigh(p: float, c: float) -> tuple[Reweight, ...]:
    return (Adaptive(p, c),) if p else ()


def _flow(shift: float, w: float, drop: float, velocity: Velocity, p: float, c: float) -> FlowMapMatching:
    return FlowMapMatching(Diagonal(shift=shift), reweight=_weigh(p, c), guidance=Exact(w, drop), velocity=velocity)


def _method(name: str, diagonal: float, flow: Objective, rest: Objective) -> Method:
    terms = ((1.0, Mixture(((diagonal, flow), (1 - diagonal, rest)))),)
    return Method(name, (Update("student", terms),), (SELF_DISTILLATION, FLOW_MAP_MATCHING))


def lsd_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage. Half of the batch is on the diagonal."""
    return _stages(lsd, recipe)


def esd_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As `lsd_stages`."""
    return _stages(esd, recipe)


def psd_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As `lsd_stages`."""
    return _stages(psd, recipe)


def _stages(make: Callable[..., Method], recipe: Recipe) -> tuple[Stage, ...]:
    scale = Scale.of(recipe)
    method = make(diagonal=0.5, shift=scale.shift, w=scale.guidance, velocity=scale.velocity, p=0.5)
    return (scale.regression(method),)
