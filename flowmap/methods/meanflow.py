"""MeanFlow, arXiv:2505.13447, and improved MeanFlow, arXiv:2512.02012: the flow map from its own derivative."""

from __future__ import annotations

from typing import Literal

from ..derivative import Derivative, ForwardMode, Predicted
from ..guidance import Exact
from ..method import Method, Update
from ..objectives.flow_map_matching import FlowMapMatching
from ..reweights import Adaptive
from ..times import LogitNormal, Triangle
from .citations import IMPROVED_MEANFLOW, MEANFLOW


def meanflow(
    *,
    diagonal: float = 0.75,
    mean: float = -0.4,
    shift: float = 1.0,
    w: float = 1.0,
    drop: float = 0.1,
    p: float = 1.0,
    c: float = 1e-2,
    velocity: Literal["data", "teacher"] = "data",
    derivative: Derivative = ForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """The published ImageNet settings: sorted logit-normal times, three quarters on the diagonal, adaptive loss.

    `c` is compared with the mean over elements; the paper's, with the sum.
    """
    matching = FlowMapMatching(
        times=Triangle(diagonal, 0.0, shift, LogitNormal(mean)),
        derivative=derivative,
        reweight=(Adaptive(p, c),),
        guidance=Exact(w, drop),
        velocity=velocity,
    )
    return Method("meanflow", (Update("student", ((1.0, matching),)),), (MEANFLOW,))


def improved(
    *,
    diagonal: float = 0.5,
    mean: float = -0.4,
    shift: float = 1.0,
    w: float = 1.0,
    drop: float = 0.1,
    p: float = 1.0,
    c: float = 1e-2,
    velocity: Literal["data", "teacher"] = "data",
    derivative: Derivative = ForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """A regression of velocities, V = u_θ + (t - r) sg[D u_θ] ≈ v, with D along the predicted u_θ(z_t, t, t).

    It is MeanFlow's u_θ ≈ sg[v - (t - r) D u_θ] with another tangent: V then depends on z_t alone, as a prediction
    should. 1 G, and 1 F and 1 J for the half off the diagonal. The paper's networks are told w, drawn anew for every
    sample, and may predict the tangent with a head of its own; here w is one, built in.
    """
    predicted = Predicted(derivative)
    method = meanflow(
        diagonal=diagonal, mean=mean, shift=shift, w=w, drop=drop, p=p, c=c, velocity=velocity, derivative=predicted
    )
    return Method("improved_meanflow", method.updates, (IMPROVED_MEANFLOW, MEANFLOW))
