"""The rows of `law` tuned by one sweep, on prompts that judge nothing, and trained for as long by the clock."""

from __future__ import annotations

import math
from pathlib import Path

from attrs import evolve

from .curves import FEW
from .jobs import least
from .law_jobs import Judging, Settings, judged
from .law_rows import ABLATIONS, NAMES, ROWS, Row

FACTORS = (1 / 3, 1.0, 3.0)
"""Of a row's learning rates, all of them."""
TRIAL, SHARE = 1000, 1 / 3
"""The seed of trials, which is of no result, and their length as a share of a run's."""


def trials(row: Row, settings: Settings, folder: Path) -> list[Judging]:
    """At FEW steps, under the method's own sampler, on prompts of the training set."""
    short = evolve(settings, shorter=SHARE * settings.shorter)
    tried = [evolve(row, rate=factor * row.rate) for factor in FACTORS]
    return [Judging(one, TRIAL, row.samplers[0], FEW, short, folder, tuning=True) for one in tried]


def tried(folder: Path) -> bool:
    """Whether there is a trial of any row."""
    return (folder / "trials").is_dir()


def score(trial: Judging) -> float | None:
    """The primary metric; None where it is missing, infinite where training diverged."""
    found = trial.found
    return None if found is None else float(found["values"].get("energy_distance", math.inf))


def rated(row: Row, settings: Settings, folder: Path) -> Row:
    """With the best of the rates that were tried; as it is, while trials are missing. AnyFlow's rows have one sweep."""
    swept = NAMES["anyflow"] if row.name == "anyflow_1" else row
    if row.ablation or not tried(folder):
        return row
    scores = {factor: score(one) for factor, one in zip(FACTORS, trials(swept, settings, folder), strict=True)}
    best = least(FACTORS, scores.__getitem__)
    return row if best is None else evolve(row, rate=best * row.rate)


def timed(row: Row, settings: Settings, folder: Path) -> Row | None:
    """As long by the processor's clock as AnyFlow's stages 1 + 2; None where one of them was not timed in one piece."""
    if row.own or not judged(row.name, folder):
        return None
    mine, theirs = (_seconds(rated(one, settings, folder), settings, folder) for one in (NAMES["anyflow"], row))
    if not mine or not theirs:
        return None
    same = rated(row, settings, folder)
    return evolve(same, name=f"{row.name}_time", title=f"{row.title}, equal time", longer=mine / theirs)


def _seconds(row: Row, settings: Settings, folder: Path) -> float | None:
    found = Judging(row, 0, row.samplers[0], FEW, settings, folder).found
    return None if found is None else found.get("seconds")


def rows(settings: Settings, folder: Path) -> list[Row]:
    """All that there may be results of."""
    same = [rated(row, settings, folder) for row in ROWS]
    return [*same, *(one for row in ROWS if (one := timed(row, settings, folder)) is not None), *ABLATIONS]
