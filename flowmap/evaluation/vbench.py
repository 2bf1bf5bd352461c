"""What VBench found of a student's videos, for its card. Reads the `*_eval_results.json` of vbench 0.1.5."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

FILE = Path("evaluation") / "vbench.json"
"""In a run's directory; what the card has a table of."""


class VBenchError(ValueError):
    """A file is not what VBench writes."""


@frozen
class Score:
    """Of a dimension, such as `subject_consistency`, of so many videos."""

    dimension: str
    value: float
    videos: int


def read(file: Path) -> tuple[Score, ...]:
    """From {dimension: [score, [one a video, ...]]}; a `VBenchError` that names what is not so."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VBenchError(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(found, Mapping) or not found:
        raise VBenchError(f"{file}: must be {{dimension: [score, [one a video]]}}, as VBench's *_eval_results.json is")
    return tuple(_score(file, str(name), value) for name, value in found.items())


def _score(file: Path, name: str, value: Any) -> Score:
    good = isinstance(value, list) and len(value) == 2 and isinstance(value[1], list)
    number = value[0] if good else None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise VBenchError(f"{file}: {name!r} must be [score, [one a video]], with a finite score")
    return Score(name, float(number), len(value[1]))


def section(scores: tuple[Score, ...]) -> str:
    """Of a card, in Markdown."""
    rows = ["| dimension | score | videos |", "|---|---|---|"]
    rows += [f"| {one.dimension.replace('_', ' ')} | {one.value:.4f} | {one.videos} |" for one in scores]
    told = "As VBench's own evaluation gave them; higher is better."
    return "\n".join(["## VBench", "", told, "", *rows])


def placed(card: str, text: str) -> str:
    """`card` with that section in place of the one that it has or, if none, before its citations."""
    before, mark, rest = card.partition("## VBench\n")
    if mark:
        _, again, tail = rest.partition("\n## ")
        return f"{before}{text}\n" + (f"\n## {tail}" if again else "")
    before, mark, rest = card.partition("## Citations\n")
    return f"{before}{text}\n\n{mark}{rest}" if mark else f"{card.rstrip()}\n\n{text}\n"
