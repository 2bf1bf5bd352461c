"""Flow matching, arXiv:2210.02747: train or fine-tune a diffusion network on data."""

from __future__ import annotations

from .._types import Role
from ..guidance import Exact
from ..method import Method, Update
from ..objectives.flow_map_matching import FlowMapMatching
from ..times import ALL, Diagonal, LogitNormal, Span
from .citations import FLOW_MATCHING


def flow_matching(
    *, role: Role = "teacher", shift: float = 5.0, drop: float = 0.1, mean: float = 0.0, within: Span = ALL
) -> Method:
    """AnyFlow's stage 0 where `role` is the teacher: v = ε - x, logit-normal t, shifted; prompts dropped at `drop`.

    within: the times of one of two experts.
    """
    matching = FlowMapMatching(
        Diagonal(LogitNormal(mean), shift, within=within), guidance=Exact(w=1.0, drop=drop), role=role
    )
    return Method("flow_matching", (Update(role, ((1.0, matching),)),), (FLOW_MATCHING,))
