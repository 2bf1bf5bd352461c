"""What quality does with the number of steps: moments over training seeds, slopes, what they say by rule, tables."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from .metrics2d import slope

FEW, MANY = 4, 32
"""Steps between which a slope is taken; the learning rate is picked at FEW."""
SURE = 0.95
"""A slope or a difference counts where this interval of its mean over training seeds, by Student's t, is beside 0."""
EXPECTED = {"flow_map": ("improves", "flat"), "consistency": ("gets worse",), "euler": ("improves",)}
"""What the paper shows from few steps to many, by sampler, at its scale."""
ALONE = "one seed says nothing"

Curve = Mapping[int, Mapping[int, float]]  # steps -> seed -> value


def moments(values: Iterable[float]) -> dict[str, Any]:
    """std, and se, the standard error of the mean: None of less than two."""
    found = list(values)
    several = len(found) > 1
    std, se = (stdev(found), error(found)) if several else (None, None)
    return {"mean": fmean(found) if found else None, "std": std, "se": se, "seeds": len(found)}


def error(values: Sequence[float]) -> float:
    """The standard error of the mean of two values at least."""
    return stdev(values) / math.sqrt(len(values))


def slope_of(curve: Curve, better: str) -> dict[str, Any] | None:
    """d metric / d log2 N from FEW to MANY, seed by seed as a share of its value at FEW; below zero is improvement.

    Moments over the seeds that have every point and are not 0 at FEW; None where there are none.
    """
    inside = {n: by_seed for n, by_seed in curve.items() if FEW <= n <= MANY}
    if len(inside) < 2 or FEW not in inside:
        return None
    whole = [seed for seed, level in inside[FEW].items() if level and all(seed in by for by in inside.values())]
    if not whole:
        return None
    sign = 1 if better == "lower" else -1
    return moments(sign * slope([*inside], [by[seed] for by in inside.values()]) / inside[FEW][seed] for seed in whole)


def interval(se: float, n: int) -> float:
    """Half of the width of the interval of a mean of n values, or of what n groups of samples told apart."""
    return float(t.ppf((1 + SURE) / 2, n - 1)) * se


def reading(slope: Mapping[str, Any]) -> str:
    """Of the moments of a slope, below zero where it improves."""
    if slope["se"] is None:
        return ALONE
    if abs(slope["mean"]) <= interval(slope["se"], slope["seeds"]):
        return "flat"
    return "improves" if slope["mean"] < 0 else "gets worse"


def compared(difference: Mapping[str, Any]) -> str:
    """Of the moments of a difference in a metric that is better lower."""
    if difference["se"] is None:
        return ALONE
    if abs(difference["mean"]) <= interval(difference["se"], difference["seeds"]):
        return "no difference"
    return "better" if difference["mean"] < 0 else "worse"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    told = info.read_text().splitlines() if info.is_file() else []
    named = (text.partition(":")[2].strip() for text in told if text.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def spread(one: Mapping[str, Any], digits: int = 2, sign: str = "", of: str = "std") -> str:
    """Mean ± standard deviation, or with of = "se" its standard error."""
    if one["mean"] is None:
        return "–"
    beside = "" if one[of] is None else f" ± {one[of]:.{digits}f}"
    return f"{one['mean']:{sign}.{digits}f}{beside}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of Markdown, an empty one last."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]
