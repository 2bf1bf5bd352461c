"""For plugin authors: what a backbone must do, as checks; exact flow maps and counters, as oracles.

pytest --flowmap-check NAME                    in any directory, on an installed backbone
@parametrize_with_backbone_checks([Spec()])    in your own tests
check_backbone(Spec())                         without pytest
"""

from __future__ import annotations

from .counting import CountingFlowMap, counting
from .gaussian import GaussianFlowMap, GuidedGaussianFlowMap
from .kit_checks import BACKBONE_CHECKS, check_backbone, parametrize_with_backbone_checks
from .kit_helpers import Result, Skip

__all__ = [
    "BACKBONE_CHECKS",
    "CountingFlowMap",
    "GaussianFlowMap",
    "GuidedGaussianFlowMap",
    "Result",
    "Skip",
    "check_backbone",
    "counting",
    "parametrize_with_backbone_checks",
]
