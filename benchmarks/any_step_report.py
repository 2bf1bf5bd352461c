"""From the values of `any_step` to a JSON file, a picture and a table."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen

import flowmap
from flowmap.recipe import describe

from .metrics2d import slope

if TYPE_CHECKING:
    from .any_step import Settings

METRICS = {
    "sliced_w2": "sliced Wasserstein-2 distance to the data",
    "outliers": "share of samples farther than 4 σ from every mode",
    "weight_tv": "total variation of the modes' weights",
    "paired_error": "mean distance to the endpoint of the exact ODE from the same noise",
}
SPANS = {"4-32": (4, 32), "4-64": (4, 64)}
MEANINGLESS = 0.03  # in sliced W2
STYLES = {  # colour, dashes
    ("exact velocity", "Euler"): ("#888888", "-"),
    ("stage 1, data", "flow map"): ("#1f77b4", "-"),
    ("stage 1, data", "re-noise"): ("#1f77b4", "--"),
    ("stage 1, teacher", "flow map"): ("#2ca02c", "-"),
    ("stage 1 + 2, no co-training", "flow map"): ("#ff7f0e", "-"),
    ("stage 1 + 2", "flow map"): ("#d62728", "-"),
}


@frozen
class Value:
    """One number of one seed."""

    model: str
    sampler: str
    steps: int
    metric: str
    seed: int
    value: float


@frozen
class Context:
    """What a run took; no claim, for other work may have run beside it."""

    seconds: float
    processor_seconds: float
    workers: int


def summarise(values: Sequence[Value], settings: Settings, context: Context) -> dict[str, Any]:
    """What the JSON file holds; every metric is better lower, std is over the seeds."""
    values = sorted(values, key=lambda v: (v.metric, v.model, v.sampler, v.steps, v.seed))
    curves = {(v.metric, v.model, v.sampler): None for v in values if v.steps}
    return {
        "benchmark": "any_step_2d",
        "flowmap": flowmap.__version__,
        "metrics": METRICS,
        "records": [
            {"model": model, "sampler": sampler, "steps": n, "metric": metric, **_moments(found), "better": "lower"}
            for (model, sampler, n, metric), found in _grouped(values).items()
        ],
        "slopes": [
            {"model": model, "sampler": sampler, "metric": metric, "span": span, **_moments(found), "better": "lower"}
            for metric, model, sampler in curves
            for span, (low, high) in SPANS.items()
            if (found := _slopes(values, metric, model, sampler, low, high))
        ],
        "findings": _findings(values),
        "settings": {name: value for name, value in describe(settings).items() if name != "type"},
        "context": {
            "seconds": round(context.seconds),
            "processor_seconds": round(context.processor_seconds),
            "workers": context.workers,
            "threads_per_worker": 1,
            "processor": _processor(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _grouped(values: Sequence[Value]) -> dict[tuple[str, str, int, str], dict[int, float]]:
    groups: dict[tuple[str, str, int, str], dict[int, float]] = {}
    for v in values:
        groups.setdefault((v.model, v.sampler, v.steps, v.metric), {})[v.seed] = v.value
    return groups


def _moments(by_seed: Mapping[int, float]) -> dict[str, Any]:
    found = list(by_seed.values())
    return {"mean": mean(found), "std": stdev(found) if len(found) > 1 else 0.0, "seeds": len(found)}


def _slopes(values: Sequence[Value], metric: str, model: str, sampler: str, low: int, high: int) -> dict[int, float]:
    """d metric / d log2 N by seed."""
    curves: dict[int, list[Value]] = {}
    for v in values:
        if (v.metric, v.model, v.sampler) == (metric, model, sampler) and low <= v.steps <= high:
            curves.setdefault(v.seed, []).append(v)
    return {
        seed: slope([v.steps for v in curve], [v.value for v in curve])
        for seed, curve in curves.items()
        if len(curve) > 1
    }


# ---------------------------------------------------------------------------- what to look for


def _findings(values: Sequence[Value]) -> list[dict[str, Any]]:
    """Differences of sliced W2, seed by seed, against what the method leads one to expect."""
    groups = _grouped(values)
    steps = sorted({v.steps for v in values if v.steps})
    first, last = 4 if 4 in steps else steps[0], steps[-1]
    seeds = sorted({v.seed for v in values})

    def at(model: str, sampler: str, n: int, seed: int) -> float:
        return groups[model, sampler, n, "sliced_w2"][seed]

    def few(model: str, seed: int) -> float:
        return mean(at(model, "flow map", n, seed) for n in steps if n <= first)

    one, two, alone = "stage 1, data", "stage 1 + 2", "stage 1 + 2, no co-training"
    expected: list[tuple[str, str, Callable[[int], float]]] = [
        (
            f"exact velocity, Euler: {last} steps against {first}",
            "lower",
            lambda s: at("exact velocity", "Euler", last, s) - at("exact velocity", "Euler", first, s),
        ),
        (
            f"{one}, along the flow: {last} steps against {first}",
            "lower",
            lambda s: at(one, "flow map", last, s) - at(one, "flow map", first, s),
        ),
        (
            f"{one}, the same weights re-noised: {last} steps against {first}",
            "higher",
            lambda s: at(one, "re-noise", last, s) - at(one, "re-noise", first, s),
        ),
        (
            f"{one}, {last} steps: the same weights re-noised against along the flow",
            "higher",
            lambda s: at(one, "re-noise", last, s) - at(one, "flow map", last, s),
        ),
        (
            f"stage 1, velocity of the teacher against data, up to {first} steps",
            "lower",
            lambda s: few("stage 1, teacher", s) - few(one, s),
        ),
        (
            f"{two} against {one}, up to {first} steps",
            "lower",
            lambda s: few(two, s) - few(one, s),
        ),
        (
            f"{two} against {one}, {last} steps",
            "not higher",
            lambda s: at(two, "flow map", last, s) - at(one, "flow map", last, s),
        ),
        (
            f"{alone} against {one}, {last} steps",
            "higher",
            lambda s: at(alone, "flow map", last, s) - at(one, "flow map", last, s),
        ),
    ]
    holds: dict[str, Callable[[float], bool]] = {
        "lower": lambda d: d < -MEANINGLESS,
        "higher": lambda d: d > MEANINGLESS,
        "not higher": lambda d: d <= MEANINGLESS,
    }
    findings = []
    for what, expectation, difference in expected:
        by_seed = {seed: difference(seed) for seed in seeds}
        held = sum(holds[expectation](d) for d in by_seed.values())
        findings.append({"what": what, "expected": expectation, "held_on": held, **_moments(by_seed)})
    return findings


# ---------------------------------------------------------------------------- writing


def write(found: Mapping[str, Any], out: Path) -> None:
    """any_step_2d.json, .png and .md under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "any_step_2d.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "any_step_2d.md").write_text(markdown(found))
    plot(found, out / "any_step_2d.png")


def _curves(found: Mapping[str, Any], metric: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    curves: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in STYLES}
    for record in found["records"]:
        if record["metric"] == metric and record["steps"]:
            curves.setdefault((record["model"], record["sampler"]), []).append(record)
    return {key: sorted(curve, key=lambda r: r["steps"]) for key, curve in curves.items() if curve}


def _floor(found: Mapping[str, Any], metric: str) -> float:
    return next(float(r["mean"]) for r in found["records"] if r["model"] == "data" and r["metric"] == metric)


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, and what was expected beside what was found."""
    context, settings = found["context"], found["settings"]
    lines = [
        "# Any-step sampling in two dimensions",
        "",
        f"Written by `python -m benchmarks.any_step` (flowmap {found['flowmap']}); `any_step_2d.json` holds all.",
        f"Mean ± standard deviation over {len(settings['seeds'])} seeds; the data are eight Gaussians of width "
        f"{settings['backbone']['mixture']['std']} on a circle of radius {settings['backbone']['mixture']['radius']}. "
        f"{settings['samples']} samples are judged, and a fresh draw of the data scores the last row.",
        "",
    ]
    for metric in ("sliced_w2", "outliers", "weight_tv", "paired_error"):
        lines += _table(found, metric)
    lines += [
        "## What it shows",
        "",
        "Differences of sliced W2 between the first and the second, seed by seed. Less than "
        f"{MEANINGLESS} counts as no difference. The last column counts the seeds on which the expectation held.",
        "",
        "| comparison | expected | found | seeds |",
        "|---|---|---|---|",
        *(
            f"| {f['what']} | {f['expected']} | {f['mean']:+.3f} ± {f['std']:.3f} | {f['held_on']} of {f['seeds']} |"
            for f in found["findings"]
        ),
        "",
        *_two_ways_to_fail(found),
        "",
        "Two dimensions are not video. Modes this narrow, without shift, exaggerate what low noise contributes, and "
        "the balanced loss is biased for the noisy targets of data, an effect that fades in high dimension: the levels "
        "say nothing about a video model, the directions are what the method predicts.",
        "",
        f"It took {context['seconds'] / 60:.0f} minutes by the clock with {context['workers']} worker(s) of one "
        f"thread, on {context['processor']} (torch {context['torch']}). That is context and no claim: other work may "
        "have run beside it.",
    ]
    return "\n".join(lines) + "\n"


def _two_ways_to_fail(found: Mapping[str, Any]) -> list[str]:
    """Sliced W2 counts two things at once; neither alone orders the samplers."""
    lines = []
    for sampler in ("flow map", "re-noise"):
        tv, out = (_curves(found, metric)["stage 1, data", sampler] for metric in ("weight_tv", "outliers"))
        low = next((i for i, record in enumerate(tv) if record["steps"] == 4), 0)
        lines.append(
            f"{sampler}, from {tv[low]['steps']} to {tv[-1]['steps']} steps: total variation of the modes' weights "
            f"{tv[low]['mean']:.3f} to {tv[-1]['mean']:.3f}, outliers {out[low]['mean']:.3f} to {out[-1]['mean']:.3f}"
        )
    return [
        "The distance holds two things, how much each mode gets and how sharp the modes are, and a sampler may gain in "
        "one while it loses the other. The student of stage 1, data:",
        "",
        *(f"* {line}" for line in lines),
    ]


def _table(found: Mapping[str, Any], metric: str) -> list[str]:
    curves = _curves(found, metric)
    steps = [record["steps"] for record in next(iter(curves.values()))]
    slopes = {(s["model"], s["sampler"]): s for s in found["slopes"] if s["metric"] == metric and s["span"] == "4-64"}
    rows = [
        f"## {METRICS[metric][0].upper()}{METRICS[metric][1:]}",
        "",
        "| model / sampler | " + " | ".join(str(n) for n in steps) + " | slope 4–64 |",
        "|---" * (len(steps) + 2) + "|",
    ]
    for key, curve in curves.items():
        cells = [f"{r['mean']:.3f} ± {r['std']:.3f}" for r in curve]
        rate = f"{slopes[key]['mean']:+.3f} ± {slopes[key]['std']:.3f}" if key in slopes else "–"
        rows.append(f"| {' / '.join(key)} | " + " | ".join([*cells, rate]) + " |")
    if metric != "paired_error":
        rows.append(f"| data / fresh draw | {_floor(found, metric):.3f} |" + " |" * len(steps))
    return [*rows, ""]


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Against the number of steps; bands are one standard deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 3), ("sliced_w2", "weight_tv", "outliers"), strict=True):
        curves = _curves(found, metric)
        for key, (colour, dashes) in STYLES.items():
            if key not in curves:
                continue
            steps, centre, spread = ([r[name] for r in curves[key]] for name in ("steps", "mean", "std"))
            axes.plot(steps, centre, dashes, color=colour, marker="o", markersize=4, label=" / ".join(key))
            low = [max(m - s, m / 2) for m, s in zip(centre, spread, strict=True)]
            axes.fill_between(
                steps, low, [m + s for m, s in zip(centre, spread, strict=True)], color=colour, alpha=0.18
            )
        axes.axhline(_floor(found, metric), color="black", linewidth=0.8, linestyle=":", label="data / fresh draw")
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.set_yscale("log")
        axes.set_xlabel("steps")
        axes.set_title(METRICS[metric], fontsize=10)
        axes.grid(alpha=0.25, which="both")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
