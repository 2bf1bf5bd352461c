"""What an iteration computes, for who times it."""

from __future__ import annotations

import torch
from attrs import evolve

from ..data import Data
from ..recipe import Recipe
from .hollow import HollowError
from .plan import Machine, plan


def operations(recipe: Recipe, data: Data, gpus: int, device: torch.device) -> tuple[float, ...]:
    """Of an iteration of each stage on each GPU, recomputed ones included: the mean over draws, by the plan.

    Nothing where there is no plan, of equipped networks or of a backbone that needs its numbers; and on a CPU, whose
    runs are too short to plan them first.
    """
    if device.type == "cpu":
        return ()
    try:
        found = plan(evolve(recipe, data=data), Machine(gpus=gpus))
    except (ValueError, HollowError, NotImplementedError):
        return ()
    return tuple(stage.flops / gpus for stage in found.stages)
