"""Measurements as records, as a table, as files."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs
from attrs import frozen

from ..model import Kind
from .metrics import Metric

Key: TypeAlias = tuple[str, str]  # (model, sampler): a line of a plot, a row of a table
LABELS: Mapping[Key, str] = {
    ("teacher", "euler"): "teacher",
    ("student", "flow_map"): "student",
    ("student", "consistency"): "student, re-noised",
    ("student", "phased"): "student, re-noised by phases",
}
TUNED: Mapping[Key, str] = {
    ("teacher", "flow_map"): "before",
    ("teacher", "consistency"): "before, re-noised",
    ("teacher", "phased"): "before, re-noised by phases",
    ("student", "flow_map"): "after",
    ("student", "consistency"): "after, re-noised",
    ("student", "phased"): "after, re-noised by phases",
}
"""Where the frozen network is sampled as a flow map it is no teacher: it is the student before it was fine-tuned."""

BETTER: Mapping[str, str] = {"lower": "lower is better", "higher": "higher is better", "one": "1 is real"}


@frozen
class Point:
    """A model under a sampler at a number of steps, which takes `calls` calls of the network."""

    model: Literal["teacher", "student"]
    sampler: Kind
    steps: int
    calls: int

    @property
    def key(self) -> Key:
        return self.model, self.sampler


@frozen
class Record:
    """A metric at a point: mean and standard deviation over `seeds` seeds."""

    model: str
    sampler: str
    steps: int
    calls: int
    metric: str
    mean: float
    std: float
    seeds: int
    better: str

    @property
    def key(self) -> Key:
        return self.model, self.sampler


def labels(found: Iterable[Point | Record]) -> dict[Key, str]:
    """What each model under its sampler is called, in the order of `found`."""
    keys = dict.fromkeys(one.key for one in found)
    names = TUNED if any(model == "teacher" and sampler != "euler" for model, sampler in keys) else LABELS
    return {key: names[key] for key in keys}


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation); no deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def record(point: Point, metric: Metric, values: Sequence[float]) -> Record:
    mean, std = spread(values)
    return Record(
        **attrs.asdict(point), metric=metric.name, mean=mean, std=std, seeds=len(values), better=metric.better
    )


def as_json(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [attrs.asdict(r) for r in records]


def as_csv(records: Iterable[Record]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in attrs.fields(Record)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_json(records))
    return text.getvalue()


def table(records: Sequence[Record], real: Mapping[str, tuple[float, float]]) -> str:
    """A block a metric: a row a sampler, a column a number of steps, `mean ±spread` in each cell."""
    names = labels(records)
    return "\n\n".join(
        _block([r for r in records if r.metric == name], real.get(name), names)
        for name in dict.fromkeys(r.metric for r in records)
    )


def markdown(records: Sequence[Record]) -> str:
    """The same as one markdown table, a row a metric and sampler."""
    steps = sorted({r.steps for r in records})
    rows = [["metric", "sampler", *(str(n) for n in steps)], ["---"] * (2 + len(steps))]
    names = labels(records)
    for name, key in dict.fromkeys((r.metric, r.key) for r in records):
        found = {r.steps: r for r in records if (r.metric, r.key) == (name, key)}
        cells = [_cell(found[n].mean, found[n].std) if n in found else "" for n in steps]
        rows.append([name.replace("_", " "), names[key], *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _block(records: Sequence[Record], real: tuple[float, float] | None, names: Mapping[Key, str]) -> str:
    steps = sorted({r.steps for r in records})
    rows = [[f"{records[0].metric.replace('_', ' ')} ({BETTER[records[0].better]})", *(f"{n}" for n in steps)]]
    for key in dict.fromkeys(r.key for r in records):
        found = {r.steps: r for r in records if r.key == key}
        per = next(iter(found.values()))
        name = f"  {names[key]}, {per.calls // per.steps} call{'s' * (per.calls > per.steps)} a step"
        rows.append([name, *(_cell(found[n].mean, found[n].std) if n in found else "" for n in steps)])
    if real is not None:
        rows.append(["  real videos, the floor", *[""] * (len(steps) - 1), _cell(*real)])
    first, width = max(len(row[0]) for row in rows), max(len(cell) for row in rows for cell in row[1:])
    return "\n".join(f"{row[0]:{first}}" + "".join(f"  {cell:>{width}}" for cell in row[1:]) for row in rows)


def _cell(mean: float, std: float) -> str:
    digits = 1 if abs(mean) >= 10 else 2
    return f"{mean:.{digits}f} ±{std:.{digits}f}"
