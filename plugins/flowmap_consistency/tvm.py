"""Terminal velocity matching, arXiv:2511.19797: the Lagrangian identity and flow matching, each on the whole batch."""

from __future__ import annotations

from typing import Literal

from flowmap import Recipe, Stage
from flowmap.derivative import EndDerivative, EndForwardMode
from flowmap.guidance import Exact
from flowmap.method import Method, Update
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.times import Diagonal, Gap, LogitNormal

from .citations import TVM
from .lagrangian import LagrangianMatching
from .scale import Scale


def tvm(
    *,
    shift: float = 1.0,
    w: float = 2.0,
    drop: float = 0.1,
    velocity: Literal["data", "teacher"] = "data",
    through: bool = True,
    derivative: EndDerivative = EndForwardMode(),  # noqa: B008, a frozen value
) -> Method:
    """∂_r Φ_{r←t}(z_t) ≈ sg[ u_θ(Φ_{r←t}(z_t), r, r) ], and u_θ(z_s, s, s) ≈ w v + (1 - w) sg[ u_θ(z_s, s, s | ∅) ].

    t - r = sigmoid(N(-0.8, 1)), r logit-normal (-0.4, 1) below 1 - (t - r), s of its own. 1 GJ, 1 G and 2 F, of which
    one is guidance's. w = 2 is the published one-step model's.

    The paper makes targets with an average of the weights, here with the weights; its networks may be told w, predict
    velocity / w and weigh by 1 / w, which for one w is a constant; and they are kept Lipschitz by their normalisations.
    """
    density = LogitNormal(-0.4, 1.0)
    end = LagrangianMatching(
        Gap(end=density, shift=shift), derivative, guidance=Exact(w, drop), velocity="student", through=through
    )
    flow = FlowMapMatching(Diagonal(density, shift), guidance=Exact(w, drop), velocity=velocity)
    return Method("tvm", (Update("student", ((1.0, end), (1.0, flow))),), (TVM,))


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """As long as the recipe's first stage."""
    scale = Scale.of(recipe)
    return (scale.regression(tvm(shift=scale.shift, w=scale.guidance, velocity=scale.velocity)),)
