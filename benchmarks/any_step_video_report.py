"""From the results of `any_step_video` to a JSON file, a picture and tables, with what the numbers say by rule."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from attrs import frozen

import flowmap
from flowmap.training.files import write_text
from flowmap.training.run import environment

from .curves import (
    EXPECTED,
    FEW,
    MANY,
    TWICE,
    Curve,
    compared,
    moments,
    number,
    processor,
    reading,
    slope_of,
    spread,
    table,
)

NAME = "any_step_video"
PRIMARY = "frechet_distance"
METRICS = {
    "frechet_distance": ("Fréchet distance to real clips of the same prompts", "lower"),
    "label_accuracy": ("share of clips in which the prompt's digit is read", "higher"),
    "direction_accuracy": ("share of clips that start the prompt's way", "higher"),
    "speed_error": ("mean error of the speed, pixels a frame", "lower"),
}
SAMPLERS = {"flow_map": "along the flow", "consistency": "re-noised", "euler": "Euler, guided"}
COLOURS = {
    "teacher": "#777777",
    "anyflow": "#1f77b4",
    "anyflow_causal": "#17becf",
    "consistency": "#ff7f0e",
    "rcm": "#d62728",
    "self_forcing": "#e377c2",
    "self_forcing_32": "#f7b6d2",
    "dmd2": "#8c564b",
    "dmd2_32": "#c49c94",
    "meanflow": "#2ca02c",
    "shortcut": "#bcbd22",
    "lsd": "#9467bd",
}
DASHES = {"flow_map": "-", "consistency": "--", "euler": ":"}


@frozen
class Line:
    """A method under a sampler. other: it is not the method's own."""

    method: str
    title: str
    other: bool = False

    @property
    def key(self) -> str:
        return f"{self.method}_renoised" if self.other else self.method


def lines(entries: Iterable[tuple[str, str, bool]]) -> tuple[Line, ...]:
    """Of entries (name, title, whether re-noised too), the teacher first."""
    found = [Line("teacher", "teacher")]
    for name, title, renoised in entries:
        found += [Line(name, title)]
        found += [Line(name, f"{title}: the same weights re-noised", other=True)] if renoised else []
    return tuple(found)


@frozen
class Results:
    """What is there: of a benchmark that is not finished, less than its settings ask for."""

    settings: Mapping[str, Any]
    lines: Sequence[Line]
    plans: Mapping[str, Mapping[str, Any]]
    picked: Mapping[str, float | None]
    trials: Sequence[Mapping[str, Any]]
    finals: Sequence[Mapping[str, Any]]


def score(result: Mapping[str, Any]) -> float:
    """Of a trial: the primary metric at FEW steps; infinite where there is none."""
    found = [v["value"] for v in result["values"] if v["metric"] == PRIMARY and v["steps"] == FEW]
    return math.inf if not found or found[0] is None else float(found[0])


# ---------------------------------------------------------------------------- summing up


def summarise(results: Results) -> dict[str, Any]:
    """What the JSON file holds; std is over the training seeds."""
    curves = {(line.key, metric): _curve(results, line, metric) for line in results.lines for metric in METRICS}
    real = {metric: moments(_real(results, metric).values()) for metric in METRICS}
    return {
        "benchmark": NAME,
        "flowmap": flowmap.__version__,
        "metrics": {name: {"title": title, "better": better} for name, (title, better) in METRICS.items()},
        "lines": [
            {
                "method": line.key,
                "title": line.title,
                "sampler": _sampler(results, line),
                "seeds": sorted(_seeds(results, line)),
                "asked": len(results.settings["seeds"]),
            }
            for line in results.lines
        ],
        "records": [
            {"method": key, "steps": n, "metric": metric, **moments(by_seed.values()), "by_seed": by_seed}
            for (key, metric), curve in curves.items()
            for n, by_seed in curve.items()
        ],
        "real": real,
        "slopes": [
            told
            for line in results.lines
            for metric in METRICS
            if (told := _slope(line, metric, curves[line.key, metric], _sampler(results, line)))
        ],
        "comparisons": _comparisons(results, curves),
        "cost": _cost(results),
        "sweep": _sweep(results),
        "settings": dict(results.settings),
        "context": _context(results),
    }


def _values(results: Results, line: Line) -> list[tuple[int, dict[str, Any]]]:
    """(seed, value) of a line; the other sampler's come after the own ones, the same number of them."""
    found = []
    for result in results.finals:
        if result["method"] == line.method and result["values"]:
            own = result["values"][0]["sampler"]
            found += [
                (result["seed"], v)
                for v in result["values"]
                if v["method"] == line.method and (v["sampler"] != own) == line.other
            ]
    return found


def _seeds(results: Results, line: Line) -> set[int]:
    return {seed for seed, _ in _values(results, line)}


def _sampler(results: Results, line: Line) -> str | None:
    return next((v["sampler"] for _, v in _values(results, line)), None)


def _curve(results: Results, line: Line, metric: str) -> Curve:
    curve: dict[int, dict[int, float]] = {}
    for seed, v in _values(results, line):
        if v["metric"] == metric and v["value"] is not None:
            curve.setdefault(v["steps"], {})[seed] = v["value"]
    return dict(sorted(curve.items()))


def _real(results: Results, metric: str) -> dict[int, float]:
    return {
        result["seed"]: v["value"]
        for result in results.finals
        for v in result["values"]
        if v["method"] == "real" and v["metric"] == metric and v["value"] is not None
    }


def _slope(line: Line, metric: str, curve: Curve, sampler: str | None) -> dict[str, Any] | None:
    """d metric / d log2 N from FEW to MANY, as a share of the value at FEW; below zero is improvement."""
    found = slope_of(curve, METRICS[metric][1])
    if found is None:
        return None
    return {
        "method": line.key,
        "metric": metric,
        "primary": metric == PRIMARY,
        "slope": found["mean"],
        "std": found["std"],
        "seeds": found["seeds"],
        "sampler": sampler,
        "reading": reading(found["mean"], found["std"]),
    }


def _comparisons(results: Results, curves: Mapping[tuple[str, str], Curve]) -> list[dict[str, Any]]:
    """AnyFlow against the best of the others on its backbone, step by step, seed by seed, in the primary metric."""
    names = {line.method for line in results.lines}
    causal = {"anyflow_causal", "self_forcing", "self_forcing_32"}
    sides = {"anyflow": names - causal - {"anyflow", "teacher"}, "anyflow_causal": names & causal - {"anyflow_causal"}}
    found = []
    for mine, others in sides.items():
        for n, by_seed in curves.get((mine, PRIMARY), {}).items():
            at = {name: curves[name, PRIMARY].get(n, {}) for name in others}
            levels = {name: fmean(values.values()) for name, values in at.items() if values}
            if levels:
                best = min(levels, key=levels.__getitem__)
                pairs = [value - at[best][seed] for seed, value in by_seed.items() if seed in at[best]]
                told = moments(pairs)
                found.append({"method": mine, "other": best, "steps": n, **told, "reading": compared(told)})
    return found


def _cost(results: Results) -> list[dict[str, Any]]:
    """Of one run; seconds of the processor, and as shares of AnyFlow's."""
    seconds = {
        name: moments(r["seconds"] for r in results.finals if r["method"] == name and "seconds" in r)
        for name in results.plans
    }
    unit = seconds.get("anyflow", {}).get("mean")
    return [
        {
            "method": name,
            **plan,
            "seconds": seconds[name]["mean"],
            "relative_seconds": seconds[name]["mean"] / unit if unit and seconds[name]["mean"] else None,
        }
        for name, plan in results.plans.items()
    ]


def _sweep(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "method": name,
            "picked": results.picked[name],
            "trials": [
                {
                    "factor": one["factor"],
                    PRIMARY: None if math.isinf(score(one)) else score(one),
                    "state": one["state"],
                }
                for one in results.trials
                if one["method"] == name
            ],
        }
        for name in results.plans
    ]


def _context(results: Results) -> dict[str, Any]:
    here = environment()
    made = [r["environment"] for r in results.finals if "environment" in r]
    return {
        "processor": processor(),
        "gpu": next((e["cuda"] for e in made if results.settings["device"] != "cpu"), None),
        "threads_a_run": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": (made[-1] if made else here)["packages"],
        "code": sorted({r["code"] for r in [*results.trials, *results.finals]}),
    }


# ---------------------------------------------------------------------------- writing


def write(found: Mapping[str, Any], out: Path) -> None:
    """any_step_video.json, .png and .md under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{NAME}.json", json.dumps(found, indent=1) + "\n")
    write_text(out / f"{NAME}.md", markdown(found))
    plot(found, out / f"{NAME}.png")


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, and what they say by rule."""
    parts = (_head, _missing, _primary, _readings, _against, _others, _costs, _rates, _where)
    return "\n".join(line for part in parts for line in part(found)).rstrip() + "\n"


def _head(found: Mapping[str, Any]) -> list[str]:
    s = found["settings"]
    return [
        "# Any-step sampling on video",
        "",
        f"Written by `python -m benchmarks.any_step_video` (flowmap {found['flowmap']}); `{NAME}.json` holds all. "
        "Students of one teacher, the shipped tiny Wan of 1.2 M parameters that makes clips of moving digits, trained "
        f"whole (no adapters) in batches of {s['batch']} with the same number of calls of the student, {s['budget']} "
        f"on one sample. Judged with the sampler that its method names, on held-out prompts: {s['samples']} samples "
        f"for each of {len(s['seeds'])} training seeds, the noise of a seed the same for every method. Mean ± standard "
        "deviation over the training seeds, which holds that of the samples too.",
        "",
    ]


def _missing(found: Mapping[str, Any]) -> list[str]:
    short = [f"{one['title']} ({len(one['seeds'])})" for one in found["lines"] if len(one["seeds"]) < one["asked"]]
    if not short:
        return []
    return [
        f"**Not finished.** Fewer training seeds than the {found['lines'][0]['asked']} asked: {', '.join(short)}.",
        "",
    ]


def _steps(found: Mapping[str, Any]) -> list[int]:
    return list(found["settings"]["steps"])


def _rows(found: Mapping[str, Any], metric: str, digits: int) -> list[list[str]]:
    slopes = {s["method"]: s for s in found["slopes"] if s["metric"] == metric}
    rows = []
    for line in found["lines"]:
        at = {r["steps"]: r for r in found["records"] if (r["method"], r["metric"]) == (line["method"], metric)}
        if at:
            told = slopes.get(line["method"])
            rate = "–" if told is None else spread({"mean": told["slope"], "std": told["std"]}, 3, "+")
            cells = [spread(at[n], digits) if n in at else "–" for n in _steps(found)]
            rows.append([f"{line['title']} ({SAMPLERS[line['sampler']]})", *cells, rate])
    real = spread(found["real"][metric], digits)
    return [*rows, ["real clips, through the VAE", real, *[""] * len(_steps(found))]]


def _metric(found: Mapping[str, Any], metric: str) -> list[str]:
    title, better = METRICS[metric]
    head = ["method (sampler)", *map(str, _steps(found)), f"slope {FEW}–{MANY}"]
    return [f"## {title[0].upper()}{title[1:]}, {better} is better", "", *table(head, _rows(found, metric, 2))]


def _primary(found: Mapping[str, Any]) -> list[str]:
    return [
        *_metric(found, PRIMARY),
        f"Slope: change of the metric with each doubling of the steps from {FEW} to {MANY}, as a share of its value at "
        f"{FEW} steps, the sign such that below zero is improvement. The teacher takes two calls a step.",
        "",
        f"![curves]({NAME}.png)",
        "",
    ]


def _readings(found: Mapping[str, Any]) -> list[str]:
    lines = {line["method"]: line for line in found["lines"]}
    rows, differs = [], []
    for told in found["slopes"]:
        if told["primary"]:
            line = lines[told["method"]]
            expected = EXPECTED[line["sampler"]]
            agrees = told["reading"] in expected
            if not agrees and told["std"] is not None:
                differs.append(f"{line['title']} ({SAMPLERS[line['sampler']]}): {told['reading']}")
            rows.append([line["title"], SAMPLERS[line["sampler"]], " or ".join(expected), told["reading"]])
    text = [
        f"## From {FEW} steps to {MANY}",
        "",
        f"By rule: a slope of the Fréchet distance beyond {TWICE:g} times its spread improves or gets worse, any other "
        "is flat. Beside it what the paper shows for that sampler at its scale (figure 1; 1.3 B and 14 B parameters).",
        "",
        *table(["method", "sampler", "at the paper's scale", "here"], rows),
    ]
    if differs:
        text += ["This scale does not show what the paper's shows for", "", *(f"* {one}" for one in differs), ""]
    return text


def _against(found: Mapping[str, Any]) -> list[str]:
    titles = {line["method"]: line["title"] for line in found["lines"]}
    rows = [
        [titles[c["method"]], str(c["steps"]), titles[c["other"]], spread(c, 2, "+"), c["reading"]]
        for c in found["comparisons"]
    ]
    if not rows:
        return []
    return [
        "## AnyFlow and the best of the others",
        "",
        "Of those on the same backbone, the one with the least mean Fréchet distance at that number of steps: "
        "AnyFlow's less the other's, seed by seed. A difference counts beyond "
        f"{TWICE:g} times its spread. The best of several is chosen after the fact, which favours it.",
        "",
        *table(["", "steps", "best other", "difference", "AnyFlow is"], rows),
    ]


def _others(found: Mapping[str, Any]) -> list[str]:
    return [line for metric in METRICS if metric != PRIMARY for line in _metric(found, metric)]


def _costs(found: Mapping[str, Any]) -> list[str]:
    titles = {line["method"]: line["title"] for line in found["lines"]}
    rows = [
        [
            titles[c["method"]],
            " + ".join(map(str, c["iterations"])),
            *(str(c["calls"][role]) for role in ("student", "teacher", "critic")),
            number(c["seconds"], 0),
            number(c["relative_seconds"]),
        ]
        for c in found["cost"]
    ]
    return [
        "## What a run costs",
        "",
        "Calls of a network on one sample: with or without a graph one, with a tangent two, of some frames of a video "
        "their share (a causal network's clean history counts as frames it is called on). The stages keep their "
        "proportions, so a method's iterations follow from its calls; these are counted in a dry run and round to "
        "whole iterations. Seconds of one processor, of training alone; other runs shared the machine.",
        "",
        *table(["method", "iterations", "student", "teacher", "critic", "seconds", "of AnyFlow's"], rows),
    ]


def _rates(found: Mapping[str, Any]) -> list[str]:
    titles = {line["method"]: line["title"] for line in found["lines"]}
    factors = sorted({*found["settings"]["factors"], *(t["factor"] for one in found["sweep"] for t in one["trials"])})
    rows = []
    for one in found["sweep"]:
        at = {trial["factor"]: trial for trial in one["trials"]}
        edge = " (the last tried)" if one["picked"] in (min(at, default=None), max(at, default=None)) and at else ""
        picked = "–" if one["picked"] is None else f"{one['picked']:.3g}{edge}"
        rows.append([titles[one["method"]], *(_trial(at.get(factor)) for factor in factors), picked])
    return [
        "## The learning rates",
        "",
        "Every method's own rates, those of all its stages and networks at once, times each factor: one seed that no "
        f"result has, {found['settings']['sweep']:.0%} of the calls, Fréchet distance at {FEW} steps with the method's "
        "sampler. The least is taken. Where it is that of the last factor on one side, another beyond is tried, "
        f"{found['settings']['more']} at most.",
        "",
        *table(["method", *(f"× {f:.3g}" for f in factors), "taken"], rows),
    ]


def _trial(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    return "diverged" if one[PRIMARY] is None else number(one[PRIMARY])


def _where(found: Mapping[str, Any]) -> list[str]:
    c = found["context"]
    packages = ", ".join(f"{k} {v}" for k, v in c["packages"].items() if v != "not installed")
    on = f"{c['gpu']}, which several runs shared; " if c["gpu"] else ""
    mixed = "" if len(c["code"]) < 2 else f" The results come from {len(c['code'])} states of the code."
    return [
        "## Where",
        "",
        f"{on}{c['processor']}, one thread a run; Python {c['python']}, {packages}.{mixed}",
        "",
        "Networks, clips and training are thousands of times smaller than a video model's: levels say nothing about "
        "one, and a direction that shows here need not show there.",
    ]


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Against the number of steps; bands are one standard deviation over the training seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 10), layout="constrained")
    for axes, metric in zip(figure.subplots(2, 2).flat, METRICS, strict=True):
        for line in found["lines"]:
            at = [r for r in found["records"] if (r["method"], r["metric"]) == (line["method"], metric)]
            if not at:
                continue
            steps, centre = [r["steps"] for r in at], [r["mean"] for r in at]
            spread = [r["std"] or 0.0 for r in at]
            colour = COLOURS.get(line["method"].removesuffix("_renoised"), "black")
            label = f"{line['title']} ({SAMPLERS[line['sampler']]})"
            width = 2.4 if line["method"].startswith("anyflow") else 1.4
            axes.plot(
                steps,
                centre,
                DASHES[line["sampler"]],
                color=colour,
                marker="o",
                markersize=4,
                linewidth=width,
                label=label,
            )
            low, high = ([m + k * s for m, s in zip(centre, spread, strict=True)] for k in (-1, 1))
            axes.fill_between(steps, [max(v, 1e-3) for v in low], high, color=colour, alpha=0.12)
        real = found["real"][metric]["mean"]
        if real is not None:
            axes.axhline(real, color="black", linewidth=0.8, linestyle=":", label="real clips, through the VAE")
        axes.set_xscale("log", base=2)
        axes.set_xticks(_steps(found), [str(n) for n in _steps(found)])
        axes.set_yscale("log" if METRICS[metric][1] == "lower" else "linear")
        axes.set_xlabel("steps")
        axes.set_title(f"{METRICS[metric][0]} ({METRICS[metric][1]} is better)", fontsize=10)
        axes.grid(alpha=0.25, which="both")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
