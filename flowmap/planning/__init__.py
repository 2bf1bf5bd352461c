"""What a recipe will take, found by running its steps at their real size on tensors without data."""

from __future__ import annotations

from .plan import Machine, Plan, StagePlan, plan
from .report import text

__all__ = ["Machine", "Plan", "StagePlan", "plan", "text"]
