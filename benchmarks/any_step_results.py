"""From the results of many methods under one teacher to what a JSON file holds: curves, slopes, comparisons, costs."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import torch
from attrs import frozen

import flowmap
from flowmap.training.run import environment

from .curves import FEW, Curve, compared, moments, processor, reading, slope_of

Curves = Mapping[tuple[str, str], Curve]  # (line, metric)


@frozen
class Line:
    """A method under a sampler. family: with which it is drawn. other: the sampler is not the method's own."""

    method: str
    title: str
    family: str = ""
    other: bool = False

    @property
    def key(self) -> str:
        return f"{self.method}_renoised" if self.other else self.method


@frozen
class Results:
    """What is there: of a benchmark that is not finished, less than its settings ask for."""

    settings: Mapping[str, Any]
    lines: Sequence[Line]
    plans: Mapping[str, Mapping[str, Any]]
    picked: Mapping[str, float | None]
    trials: Sequence[Mapping[str, Any]]
    finals: Sequence[Mapping[str, Any]]


@frozen
class Study:
    """A benchmark, as far as its report differs from another's.

    name: of its files and its command. metrics: what each is and which way is better; the primary one is first, and
    better lower. perfect: what samples without error are called among the methods, and their title. rivals: of the
    lines, with whom each of AnyFlow's own is compared. word: for the primary metric in a sentence.
    """

    name: str
    metrics: Mapping[str, tuple[str, Literal["lower", "higher"]]]
    perfect: tuple[str, str]
    rivals: Callable[[Sequence[Line]], Mapping[str, Sequence[str]]]
    samplers: Mapping[str, str]
    word: str
    digits: int

    @property
    def primary(self) -> str:
        return next(iter(self.metrics))


def score(study: Study, result: Mapping[str, Any]) -> float:
    """Of a trial: the primary metric at FEW steps; infinite where there is none."""
    found = [v["value"] for v in result["values"] if v["metric"] == study.primary and v["steps"] == FEW]
    return math.inf if not found or found[0] is None else float(found[0])


def summarise(study: Study, results: Results) -> dict[str, Any]:
    """What the JSON file holds; std is over the training seeds."""
    curves = curves_of(study, results)
    return {
        "benchmark": study.name,
        "flowmap": flowmap.__version__,
        "metrics": {name: {"title": title, "better": better} for name, (title, better) in study.metrics.items()},
        "lines": [
            {
                "method": line.key,
                "title": line.title,
                "family": line.family,
                "sampler": _sampler(results, line),
                "seeds": sorted({seed for seed, _ in _values(results, line)}),
                "asked": len(results.settings["seeds"]),
            }
            for line in results.lines
        ],
        "records": [
            {"method": key, "steps": n, "metric": metric, **moments(by_seed.values()), "by_seed": by_seed}
            for (key, metric), curve in curves.items()
            for n, by_seed in curve.items()
        ],
        study.perfect[0]: {metric: moments(_perfect(study, results, metric).values()) for metric in study.metrics},
        "slopes": list(_slopes(study, results, curves)),
        "comparisons": list(_comparisons(study, results.lines, curves)),
        "cost": _cost(results),
        "sweep": [
            {
                "method": name,
                "picked": results.picked[name],
                "trials": [_trial(study, one) for one in results.trials if one["method"] == name],
            }
            for name in results.plans
        ],
        "settings": dict(results.settings),
        "context": _context(results),
    }


def curves_of(study: Study, results: Results) -> dict[tuple[str, str], Curve]:
    return {(line.key, metric): _curve(results, line, metric) for line in results.lines for metric in study.metrics}


def difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any]:
    """Seed by seed, of a metric that is better lower; what the first is by rule."""
    told = moments(value - theirs[seed] for seed, value in mine.items() if seed in theirs)
    return {**told, "reading": compared(told)}


def _values(results: Results, line: Line) -> list[tuple[int, Mapping[str, Any]]]:
    """(seed, value) of a line; the method's own sampler comes first."""
    found = []
    for result in results.finals:
        mine = [v for v in result["values"] if v["method"] == line.method]
        found += [(result["seed"], v) for v in mine if (v["sampler"] != mine[0]["sampler"]) == line.other]
    return found


def _sampler(results: Results, line: Line) -> str | None:
    return next((v["sampler"] for _, v in _values(results, line)), None)


def _curve(results: Results, line: Line, metric: str) -> Curve:
    curve: dict[int, dict[int, float]] = {}
    for seed, v in _values(results, line):
        if v["metric"] == metric and v["value"] is not None:
            curve.setdefault(v["steps"], {})[seed] = v["value"]
    return dict(sorted(curve.items()))


def _perfect(study: Study, results: Results, metric: str) -> dict[int, float]:
    return {
        result["seed"]: v["value"]
        for result in results.finals
        for v in result["values"]
        if v["method"] == study.perfect[0] and v["metric"] == metric and v["value"] is not None
    }


def _slopes(study: Study, results: Results, curves: Curves) -> Iterator[dict[str, Any]]:
    """Of every line and metric, what `slope_of` makes of it."""
    for line in results.lines:
        for metric, (_, better) in study.metrics.items():
            if (found := slope_of(curves[line.key, metric], better)) is not None:
                yield {
                    "method": line.key,
                    "metric": metric,
                    "primary": metric == study.primary,
                    "slope": found["mean"],
                    "std": found["std"],
                    "se": found["se"],
                    "seeds": found["seeds"],
                    "sampler": _sampler(results, line),
                    "reading": reading(found),
                }


def _comparisons(study: Study, lines: Sequence[Line], curves: Curves) -> Iterator[dict[str, Any]]:
    """AnyFlow against the best of its rivals, step by step, in the primary metric."""
    for mine, others in study.rivals(lines).items():
        for n, by_seed in curves.get((mine, study.primary), {}).items():
            levels = {key: fmean(at.values()) for key in others if (at := curves[key, study.primary].get(n))}
            if levels:
                best = min(levels, key=levels.__getitem__)
                told = difference(by_seed, curves[best, study.primary][n])
                yield {"method": mine, "other": best, "steps": n, **told}


def _cost(results: Results) -> list[dict[str, Any]]:
    """Of one run; seconds of the processor, and as shares of AnyFlow's."""
    seconds = {
        name: moments(r["seconds"] for r in results.finals if r["method"] == name and "seconds" in r)["mean"]
        for name in results.plans
    }
    unit = seconds.get("anyflow")
    return [
        {
            "method": name,
            **plan,
            "seconds": seconds[name],
            "relative_seconds": seconds[name] / unit if unit and seconds[name] else None,
        }
        for name, plan in results.plans.items()
    ]


def _trial(study: Study, one: Mapping[str, Any]) -> dict[str, Any]:
    found = score(study, one)
    return {"factor": one["factor"], study.primary: found if math.isfinite(found) else None, "state": one["state"]}


def _context(results: Results) -> dict[str, Any]:
    made = [r["environment"] for r in results.finals if "environment" in r]
    return {
        "processor": processor(),
        "gpu": next((e["cuda"] for e in made if results.settings.get("device", "cpu") != "cpu"), None),
        "threads_a_run": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": (made[-1] if made else environment())["packages"],
        "code": sorted({r["code"] for r in [*results.trials, *results.finals]}),
    }
