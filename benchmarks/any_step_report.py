"""From the results of `any_step` to a JSON file, a picture and tables, with what the numbers say by rule."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from attrs import frozen

import flowmap
from flowmap.training.files import write_text
from flowmap.training.run import environment

from .curves import EXPECTED, FEW, MANY, TWICE, compared, moments, number, processor, reading, slope_of, spread, table

NAME = "any_step"
PRIMARY = "sliced_w2"
METRICS = {
    "sliced_w2": "sliced Wasserstein-2 distance to the data",
    "outliers": "share of samples farther than 4 σ from every mode",
    "weight_tv": "total variation of the modes' weights",
    "paired_error": "mean distance to the endpoint of the exact ODE from the same noise",
}
"""All better lower."""
SAMPLERS = {"flow_map": "along the flow", "consistency": "re-noised", "euler": "Euler"}
DASHES = {"flow_map": "-", "consistency": "--", "euler": ":"}
PAIRS = (
    ("anyflow_renoised", "anyflow"),
    ("anyflow_forward_renoised", "anyflow_forward"),
    ("anyflow", "anyflow_forward"),
    ("anyflow_alone", "anyflow"),
    ("anyflow_data", "anyflow"),
    ("dmd2_32", "dmd2"),
    ("improved_meanflow", "meanflow"),
)
"""Lines that differ in one thing."""
NOT_HERE = (
    "Self-Forcing and CausVid are not here: what they add is for networks that make a video in chunks, and a point is "
    "one chunk, where they come to DMD2 without its GAN. Phased DMD trains the four jumps of its own grid and no other."
)


@frozen
class Line:
    """A method under a sampler. other: it is not the method's own."""

    method: str
    title: str
    family: str
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


# ---------------------------------------------------------------------------- summing up

Curve = dict[int, dict[int, float]]  # steps -> seed -> value


def summarise(results: Results) -> dict[str, Any]:
    """What the JSON file holds; std is over the training seeds."""
    curves = {(line.key, metric): _curve(results, line, metric) for line in results.lines for metric in METRICS}
    return {
        "benchmark": NAME,
        "flowmap": flowmap.__version__,
        "metrics": {name: {"title": title, "better": "lower"} for name, title in METRICS.items()},
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
            {"method": name, "steps": n, "metric": metric, **moments(by_seed.values()), "by_seed": by_seed}
            for (name, metric), curve in curves.items()
            for n, by_seed in curve.items()
        ],
        "fresh": {metric: moments(_fresh(results, metric)) for metric in METRICS},
        "slopes": list(_slopes(results, curves)),
        "comparisons": list(_comparisons(results, curves)),
        "pairs": list(_pairs(curves)),
        "cost": [
            {
                "method": name,
                **told,
                "seconds": moments(r["seconds"] for r in results.finals if r["method"] == name and "seconds" in r),
            }
            for name, told in results.plans.items()
        ],
        "sweep": [
            {
                "method": name,
                "picked": results.picked[name],
                "trials": [
                    {"factor": one["factor"], PRIMARY: _first(one), "state": one["state"]}
                    for one in results.trials
                    if one["method"] == name
                ],
            }
            for name in results.plans
        ],
        "settings": dict(results.settings),
        "context": _context(results),
    }


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
    curve: Curve = {}
    for seed, v in _values(results, line):
        if v["metric"] == metric and v["value"] is not None:
            curve.setdefault(v["steps"], {})[seed] = v["value"]
    return dict(sorted(curve.items()))


def _fresh(results: Results, metric: str) -> list[float]:
    values = [v for r in results.finals for v in r["values"]]
    return [v["value"] for v in values if v["method"] == "fresh" and v["metric"] == metric]


def _first(trial: Mapping[str, Any]) -> float | None:
    return next((v["value"] for v in trial["values"] if v["metric"] == PRIMARY), None)


def _slopes(results: Results, curves: Mapping[tuple[str, str], Curve]) -> Iterator[dict[str, Any]]:
    for line in results.lines:
        for metric in METRICS:
            found = slope_of(curves[line.key, metric], "lower")
            if found is not None:
                yield {
                    "method": line.key,
                    "metric": metric,
                    "primary": metric == PRIMARY,
                    "slope": found["mean"],
                    "std": found["std"],
                    "seeds": found["seeds"],
                    "sampler": _sampler(results, line),
                    "reading": reading(found["mean"], found["std"]),
                }


def _comparisons(results: Results, curves: Mapping[tuple[str, str], Curve]) -> Iterator[dict[str, Any]]:
    """AnyFlow against the best of the baselines, step by step, seed by seed, in the primary metric."""
    own = {line.family for line in results.lines if line.method == "anyflow"}
    others = [line.key for line in results.lines if line.family and line.family not in own]
    for n, by_seed in curves.get(("anyflow", PRIMARY), {}).items():
        levels = {key: fmean(at.values()) for key in others if (at := curves[key, PRIMARY].get(n))}
        if levels:
            best = min(levels, key=levels.__getitem__)
            told = _difference(by_seed, curves[best, PRIMARY][n])
            yield {"method": "anyflow", "other": best, "steps": n, **told, "reading": compared(told)}


def _pairs(curves: Mapping[tuple[str, str], Curve]) -> Iterator[dict[str, Any]]:
    for one, other in PAIRS:
        mine, theirs = (curves.get((key, PRIMARY), {}) for key in (one, other))
        for n in mine:
            if n in theirs:
                told = _difference(mine[n], theirs[n])
                yield {"method": one, "other": other, "steps": n, **told, "reading": compared(told)}


def _difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any]:
    return moments(value - theirs[seed] for seed, value in mine.items() if seed in theirs)


def _context(results: Results) -> dict[str, Any]:
    made = [r["environment"] for r in results.finals if "environment" in r]
    return {
        "processor": processor(),
        "threads_a_run": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": (made[-1] if made else environment())["packages"],
        "code": sorted({r["code"] for r in [*results.trials, *results.finals]}),
    }


# ---------------------------------------------------------------------------- writing


def write(found: Mapping[str, Any], out: Path) -> None:
    """any_step.json, .png and .md under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{NAME}.json", json.dumps(found, indent=1) + "\n")
    write_text(out / f"{NAME}.md", markdown(found))
    plot(found, out / f"{NAME}.png")


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, and what they say by rule."""
    parts = (_head, _missing, _primary, _readings, _against, _differ, _others, _costs, _rates, _where)
    return "\n".join(line for part in parts for line in part(found)).rstrip() + "\n"


def _head(found: Mapping[str, Any]) -> list[str]:
    s = found["settings"]
    mixture = s["backbone"]["mixture"]
    return [
        "# Any-step sampling in two dimensions",
        "",
        f"Written by `python -m benchmarks.any_step` (flowmap {found['flowmap']}); `{NAME}.json` holds all. The data "
        f"are {mixture['modes']} Gaussians of width {mixture['std']} on a circle of radius {mixture['radius']}, every "
        f"other one {mixture['ratio']:g} times as heavy; the teacher is their exact velocity. Students and critics are "
        f"MLPs of {s['backbone']['depth']} layers of {s['backbone']['width']} that begin as one network, which learned "
        f"that velocity. Every method trains in batches of {s['batch']} with the same number of calls of the student, "
        f"{s['budget']} on one sample, and is judged with the sampler that it names, on {s['samples']} samples for "
        f"each of {len(s['seeds'])} training seeds. Mean ± standard deviation over these.",
        "",
        NOT_HERE,
        "",
    ]


def _missing(found: Mapping[str, Any]) -> list[str]:
    short = [f"{one['title']} ({len(one['seeds'])})" for one in found["lines"] if len(one["seeds"]) < one["asked"]]
    if not short:
        return []
    asked = found["lines"][0]["asked"]
    return [f"**Not finished.** Fewer training seeds than the {asked} asked: {', '.join(short)}.", ""]


def _steps(found: Mapping[str, Any]) -> list[int]:
    return list(found["settings"]["steps"])


def _at(found: Mapping[str, Any], key: str, metric: str) -> dict[int, Mapping[str, Any]]:
    return {r["steps"]: r for r in found["records"] if (r["method"], r["metric"]) == (key, metric)}


def _metric(found: Mapping[str, Any], metric: str) -> list[str]:
    slopes = {s["method"]: s for s in found["slopes"] if s["metric"] == metric}
    rows = []
    for line in found["lines"]:
        at = _at(found, line["method"], metric)
        if at:
            told = slopes.get(line["method"])
            rate = "–" if told is None else spread({"mean": told["slope"], "std": told["std"]}, 3, "+")
            cells = [spread(at[n], 3) if n in at else "–" for n in _steps(found)]
            rows.append([f"{line['title']} ({SAMPLERS[line['sampler']]})", *cells, rate])
    if found["fresh"][metric]["seeds"]:
        rows.append(["a fresh draw of the data", spread(found["fresh"][metric], 3), *[""] * len(_steps(found))])
    head = ["method (sampler)", *map(str, _steps(found)), f"slope {FEW}–{MANY}"]
    return [f"## {METRICS[metric][0].upper()}{METRICS[metric][1:]}", "", *table(head, rows)]


def _primary(found: Mapping[str, Any]) -> list[str]:
    return [
        *_metric(found, PRIMARY),
        f"Slope: change of the metric with each doubling of the steps from {FEW} to {MANY}, as a share of its value at "
        f"{FEW} steps; below zero is improvement. The distance holds two things, how much each mode gets and how sharp "
        "the modes are: a sampler may gain in one while it loses the other, as the tables further down tell.",
        "",
        f"![curves]({NAME}.png)",
        "",
    ]


def _readings(found: Mapping[str, Any]) -> list[str]:
    lines = {line["method"]: line for line in found["lines"]}
    rows, differs = [], []
    for told in found["slopes"]:
        if told["primary"]:
            line, expected = lines[told["method"]], EXPECTED[told["sampler"]]
            if told["std"] is not None and told["reading"] not in expected:
                differs.append(f"{line['title']} ({SAMPLERS[told['sampler']]}): {told['reading']}")
            rows.append([line["title"], SAMPLERS[told["sampler"]], " or ".join(expected), told["reading"]])
    text = [
        f"## From {FEW} steps to {MANY}",
        "",
        f"By rule: a slope of the sliced distance beyond {TWICE:g} times its spread improves or gets worse, any other "
        "is flat. Beside it what the paper shows for that sampler on video (figure 1).",
        "",
        *table(["method", "sampler", "on video, at the paper's scale", "here"], rows),
    ]
    if differs:
        text += ["The plane does not show what the paper shows on video for", "", *(f"* {one}" for one in differs), ""]
    return text


def _titles(found: Mapping[str, Any]) -> dict[str, str]:
    return {line["method"]: line["title"] for line in found["lines"]}


def _against(found: Mapping[str, Any]) -> list[str]:
    titles = _titles(found)
    rows = [[str(c["steps"]), titles[c["other"]], spread(c, 3, "+"), c["reading"]] for c in found["comparisons"]]
    if not rows:
        return []
    return [
        "## AnyFlow and the best of the others",
        "",
        "AnyFlow's sliced distance less that of the baseline which has the least at that number of steps, seed by "
        f"seed. A difference counts beyond {TWICE:g} times its spread. The best of several is chosen after the fact, "
        "which favours it.",
        "",
        *table(["steps", "best other", "difference", "AnyFlow is"], rows),
    ]


def _differ(found: Mapping[str, Any]) -> list[str]:
    titles, pairs = _titles(found), {(p["method"], p["other"], p["steps"]): p for p in found["pairs"]}
    rows = [
        [
            titles[one],
            titles[other],
            *(
                f"{spread(p, 3, '+')}, {p['reading']}" if (p := pairs.get((one, other, n))) else "–"
                for n in _steps(found)
            ),
        ]
        for one, other in dict.fromkeys((p["method"], p["other"]) for p in found["pairs"])
    ]
    if not rows:
        return []
    return [
        "## What one thing does",
        "",
        "The first's sliced distance less the second's, seed by seed, at each number of steps, and what the first is "
        "by the same rule.",
        "",
        *table(["first", "second", *map(str, _steps(found))], rows),
    ]


def _others(found: Mapping[str, Any]) -> list[str]:
    return [line for metric in METRICS if metric != PRIMARY for line in _metric(found, metric)]


def _costs(found: Mapping[str, Any]) -> list[str]:
    titles = _titles(found)
    rows = [
        [
            titles[c["method"]],
            " + ".join(map(str, c["iterations"])),
            *(str(c["calls"][role]) for role in ("student", "teacher", "critic")),
            number(c["seconds"]["mean"], 0),
        ]
        for c in found["cost"]
    ]
    return [
        "## What a run costs",
        "",
        "Calls of a network on one sample: with or without a graph one, with a tangent two. The stages keep their "
        "proportions, so a method's iterations follow from its calls; these are counted in a dry run and round to "
        "whole iterations. Seconds of one processor, of training alone; other work ran beside it.",
        "",
        *table(["method", "iterations", "student", "teacher", "critic", "seconds"], rows),
    ]


def _rates(found: Mapping[str, Any]) -> list[str]:
    titles = _titles(found)
    factors = sorted({*found["settings"]["factors"], *(t["factor"] for one in found["sweep"] for t in one["trials"])})
    rows = []
    for one in found["sweep"]:
        at = {trial["factor"]: trial for trial in one["trials"]}
        edge = " (the last tried)" if at and one["picked"] in (min(at), max(at)) else ""
        picked = "–" if one["picked"] is None else f"{one['picked']:.3g}{edge}"
        rows.append([titles[one["method"]], *(_trial(at.get(factor)) for factor in factors), picked])
    return [
        "## The learning rates",
        "",
        "Every method's own rates, those of all its stages and networks at once, times each factor: one seed that no "
        f"result has, {found['settings']['sweep']:.0%} of the calls, sliced distance at {FEW} steps with the method's "
        "sampler. The least is taken. Where it is that of the last factor on one side, another beyond is tried, "
        f"{found['settings']['more']} at most.",
        "",
        *table(["method", *(f"× {f:.3g}" for f in factors), "taken"], rows),
    ]


def _trial(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    return "diverged" if one[PRIMARY] is None else number(one[PRIMARY], 3)


def _where(found: Mapping[str, Any]) -> list[str]:
    c = found["context"]
    packages = ", ".join(f"{k} {v}" for k, v in c["packages"].items() if v != "not installed")
    mixed = "" if len(c["code"]) < 2 else f" The results come from {len(c['code'])} states of the code."
    return [
        "## Where",
        "",
        f"Report: {c['processor']}; one thread a run; Python {c['python']}, {packages}.{mixed}",
        "",
        "Two dimensions are not video. Modes this narrow, without shift and guidance, exaggerate what low noise "
        "contributes, there is nothing to condition on, and the teacher makes no error: levels say nothing about a "
        "video model, and a direction that shows here need not show there.",
    ]


# ---------------------------------------------------------------------------- the picture


def plot(found: Mapping[str, Any], path: Path) -> None:
    """The primary metric against the number of steps, a panel a family; bands are one standard deviation."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    families = [f for f in dict.fromkeys(line["family"] for line in found["lines"]) if f]
    figure = Figure(figsize=(14, 5 * ((len(families) + 1) // 2)), layout="constrained")
    colours = colormaps["tab10"].colors
    panels = figure.subplots((len(families) + 1) // 2, 2, sharey=True, squeeze=False).flat
    for axes, family in zip(panels, families, strict=False):
        mine = [line for line in found["lines"] if line["family"] == family]
        roots = list(dict.fromkeys(line["method"].removesuffix("_renoised") for line in mine))
        for line in [*(line for line in found["lines"] if line["method"] == "teacher"), *mine]:
            at = _at(found, line["method"], PRIMARY)
            if not at:
                continue
            root = line["method"].removesuffix("_renoised")
            colour = "#777777" if root == "teacher" else colours[roots.index(root) % len(colours)]
            centre, std = [r["mean"] for r in at.values()], [r["std"] or 0.0 for r in at.values()]
            label = f"{line['title']} ({SAMPLERS[line['sampler']]})"
            axes.plot([*at], centre, DASHES[line["sampler"]], color=colour, marker="o", markersize=4, label=label)
            low = [max(m - s, m / 2) for m, s in zip(centre, std, strict=True)]
            axes.fill_between([*at], low, [m + s for m, s in zip(centre, std, strict=True)], color=colour, alpha=0.12)
        if found["fresh"][PRIMARY]["mean"] is not None:
            axes.axhline(
                found["fresh"][PRIMARY]["mean"], color="black", linewidth=0.8, linestyle=":", label="fresh data"
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(_steps(found), [str(n) for n in _steps(found)])
        axes.set_yscale("log")
        axes.set_xlabel("steps")
        axes.set_title(f"{family}: {METRICS[PRIMARY]}", fontsize=10)
        axes.grid(alpha=0.25, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
