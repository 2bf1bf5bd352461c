"""Objectives that cannot tell `Balanced` the noise of their velocity refuse it when they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flowmap_consistency.consistency import DiscreteConsistency
from flowmap_consistency.lagrangian import LagrangianMatching
from flowmap_consistency.scm import ContinuousConsistency
from flowmap_consistency.semigroup import SemigroupMatching

from flowmap.reweights import Balanced, Beta


@pytest.mark.parametrize(
    "objective", [LagrangianMatching, SemigroupMatching, DiscreteConsistency, ContinuousConsistency]
)
def test_balanced_is_refused(objective: Callable[..., Any]) -> None:
    objective(reweight=(Beta(),))
    with pytest.raises(ValueError, match=r"reweight has a Balanced, which needs the noise that FlowMapMatching tells"):
        objective(reweight=(Beta(), Balanced()))
