"""What a recipe will take, found by running its steps at their real size on tensors without data."""

from __future__ import annotations

from .advice import Advice, advise
from .plan import Machine, Plan, StagePlan, plan
from .report import text

__all__ = ["Advice", "Machine", "Plan", "StagePlan", "advise", "plan", "text"]
