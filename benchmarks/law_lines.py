"""What `law` has found, by row: values with their errors, slopes and differences, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from attrs import frozen

from .curves import FEW, MANY, error
from .law_jobs import METRICS, Judging, Settings, calls, judged
from .law_rows import Row
from .law_tuning import rows

PRIMARY = next(iter(METRICS))


@frozen
class Line:
    """A row under a sampler, with what was found, by number of steps and seed."""

    name: str
    title: str
    form: str
    sampler: str
    cells: Mapping[int, Mapping[int, Mapping[str, Any]]]
    calls: int | None = None

    def values(self, metric: str, steps: int) -> dict[int, float]:
        """By seed, where there is one."""
        found = self.cells.get(steps, {})
        return {
            seed: value for seed, one in found.items() if math.isfinite(value := one["values"].get(metric, math.nan))
        }

    def moments(self, metric: str, steps: int) -> dict[str, Any] | None:
        """Mean and its standard error: over training seeds; of one seed, over its samples."""
        by_seed = self.values(metric, steps)
        if not by_seed:
            return None
        return moments_of(by_seed, {s: [w[metric] for w in self.cells[steps][s]["without"]] for s in by_seed})

    def seconds(self) -> float | None:
        found = {s: one.get("seconds") for at in self.cells.values() for s, one in at.items()}
        known = [value for value in found.values() if value is not None]
        return fmean(known) if known else None

    def slope(self, metric: str) -> dict[str, Any] | None:
        """d metric / d log2 steps from FEW to MANY, seed by seed: the same noise at every number of steps."""
        steps = sorted(n for n in self.cells if FEW <= n <= MANY)
        whole = [s for s in self.values(metric, FEW) if all(s in self.values(metric, n) for n in steps)]
        if not whole or steps[-1] != MANY:
            return None
        by_seed = {s: _slope({n: self.values(metric, n)[s] for n in steps}) for s in whole}
        groups = {s: len(self.cells[FEW][s]["without"]) for s in whole}
        left = {
            s: [_slope({n: self.cells[n][s]["without"][g][metric] for n in steps}) for g in range(groups[s])]
            for s in whole
        }
        return moments_of(by_seed, left)

    def beside(self, other: Line, metric: str, steps: int, share: float = 1.0) -> dict[str, Any] | None:
        """Its value less `share` times the other's at as many steps, seed by seed: the noise is the same."""
        mine, theirs = self.values(metric, steps), other.values(metric, steps)
        both = [seed for seed in mine if seed in theirs]
        if not both:
            return None
        without = {s: [line.cells[steps][s]["without"] for line in (self, other)] for s in both}
        left = {s: [a[metric] - share * b[metric] for a, b in zip(*pair, strict=True)] for s, pair in without.items()}
        return moments_of({s: mine[s] - share * theirs[s] for s in both}, left)


def _slope(values: Mapping[int, float]) -> float:
    x = [math.log2(n) for n in values]
    middle = fmean(x)
    return sum((a - middle) * v for a, v in zip(x, values.values(), strict=True)) / sum((a - middle) ** 2 for a in x)


def moments_of(by_seed: Mapping[int, float], without: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    values = list(by_seed.values())
    if len(values) > 1:
        se, of = error(values), "seeds"
    else:
        se, of = jackknife(next(iter(without.values()))), "samples"
    return {"mean": fmean(values), "se": se, "se_of": of, "seeds": len(values), "by_seed": dict(by_seed)}


def jackknife(values: Sequence[float]) -> float:
    """The standard error of what was computed without each of some groups in turn; Quenouille, Tukey."""
    n, mean = len(values), fmean(values)
    return math.sqrt((n - 1) / n * sum((v - mean) ** 2 for v in values))


# ---------------------------------------------------------------------------- what is there


def lines(settings: Settings, folder: Path) -> list[Line]:
    """The teacher, every row under every sampler, real clips last; those of which there is something."""
    found = [
        _line(None, "teacher", "the shipped teacher, one call a step", "euler", settings.steps, settings, folder),
        *(
            _line(r, r.title, r.form, s, settings.steps, settings, folder)
            for r in rows(settings, folder)
            for s in r.samplers
        ),
        _line(None, "real clips through the VAE", "the floor", "euler", (0,), settings, folder),
    ]
    return [line for line in found if line.cells]


def _line(
    row: Row | None, title: str, form: str, sampler: Any, steps: Sequence[int], settings: Settings, folder: Path
) -> Line:
    name = row.name if row is not None else "teacher" if steps[0] else "real"
    cells: dict[int, dict[int, Any]] = {}
    for seed in judged(name, folder):
        for n in steps:
            if (one := Judging(row, seed, sampler, n, settings, folder).found) is not None:
                cells.setdefault(n, {})[seed] = one
    cost = round(calls(row, settings, folder)) if row is not None and cells else None
    return Line(name, title, form, sampler, cells, cost)
