"""Distances between sets of samples that are right on average at every number of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ of rows x [N, D] and y [M, D], divided by √D; 0 where the laws are one.

    The means are over pairs of different samples, so it is unbiased for any N, M ≥ 2 (and may come out below 0);
    not a number for fewer. Székely and Rizzo, 2013, doi:10.1016/j.jspi.2013.03.018.
    """
    return 2 * apart(x, y) - spread_of(x) - spread_of(y)


def spread_of(x: Tensor) -> float:
    """E‖X − X'‖ / √D over pairs of different rows of x [N, D]; not a number for fewer than two."""
    n = len(x)
    return _total(x, x) / (n * (n - 1)) if n > 1 else math.nan


def apart(x: Tensor, y: Tensor) -> float:
    """E‖X − Y‖ / √D over all pairs of rows of x [N, D] and y [M, D]."""
    return _total(x, y) / (len(x) * len(y))


def by_prompt(prompts: Sequence[str]) -> dict[str, Tensor]:
    """Of each prompt that has at least two samples, where they are."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return {prompt: torch.tensor(found) for prompt, found in rows.items() if len(found) > 1}


def _total(x: Tensor, y: Tensor) -> float:
    a, b = x.detach().double().cpu().flatten(1), y.detach().double().cpu().flatten(1)
    distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.sum()) / math.sqrt(a.shape[1])
