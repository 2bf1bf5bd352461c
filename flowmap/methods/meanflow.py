"""MeanFlow, arXiv:2505.13447: the flow map from its own derivative, with an exact Jacobian-vector product."""

from __future__ import annotations

from ..derivative import Derivative, ForwardMode
from ..guidance import Exact
from ..method import Method, Update
from ..objectives.flow_map_matching import FlowMapMatching
from ..times import LogitNormal, Triangle
from ..weights import Adaptive
from .citations import MEANFLOW


def meanflow(
    *,
    diagonal: float = 0.75,
    mean: float = -0.4,
    shift: float = 1.0,
    w: float = 1.0,
    drop: float = 0.1,
    p: float = 1.0,
    c: float = 1e-2,
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
    )
    return Method("meanflow", (Update("student", ((1.0, matching),)),), (MEANFLOW,))
