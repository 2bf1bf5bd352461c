"""From the values of `drift` to a JSON file, a picture and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from attrs import frozen

import flowmap
from flowmap.recipe import describe

from .drift_run import Finished, Settings
from .report import hardware

METRICS = {
    "frame_distance": "squared Fréchet distance of single frames to real ones (lower is better)",
    "absolute_drift": "mean | ink / ink of the first frame − 1 | (lower is better)",
    "signed_drift": "mean ink / ink of the first frame − 1 (nearer to zero is better)",
}
COLOURS = {"before": "tab:orange", "after": "tab:blue", "teacher": "0.35", "real": "tab:green"}
DASHES = ("--", "-", ":", "-.")
NAMES = {
    "before": "before stage 2",
    "after": "after stage 2",
    "teacher": "teacher, guided Euler",
    "real": "real clips through the VAE",
}


@frozen
class Value:
    """One number of one seed. first: the chunk's first video frame."""

    model: str
    steps: int
    seed: int
    chunk: int
    first: int
    metric: str
    value: float


def summarise(values: Sequence[Value], finished: Finished, settings: Settings, seconds: float) -> dict[str, Any]:
    groups: dict[tuple[str, str, int, int, int], list[float]] = {}
    for v in values:
        groups.setdefault((v.metric, v.model, v.steps, v.chunk, v.first), []).append(v.value)
    keys = ("metric", "model", "steps", "chunk", "first_frame")
    return {
        "benchmark": "drift",
        "flowmap": flowmap.__version__,
        "recipe": finished.recipe.name,
        "digest": finished.digest,
        "prompts": len(finished.curve.prompts),
        "guidance": finished.curve.guidance,
        "metrics": METRICS,
        "records": [dict(zip(keys, key, strict=True)) | _moments(found) for key, found in groups.items()],
        "stage_2": differences(values),
        "settings": {name: value for name, value in describe(settings).items() if name != "type"},
        "seconds": round(seconds),
        "hardware": hardware(),
    }


def _moments(found: Sequence[float]) -> dict[str, Any]:
    return {"mean": mean(found), "std": stdev(found) if len(found) > 1 else 0.0, "seeds": len(found)}


def differences(values: Sequence[Value]) -> list[dict[str, Any]]:
    """After − before in the last chunk, seed by seed: the noise is the same."""
    last = max(v.chunk for v in values)
    by_key = {(v.metric, v.steps, v.seed, v.model): v.value for v in values if v.chunk == last}
    found: dict[tuple[str, int], list[float]] = {}
    for (metric, steps, seed, model), value in by_key.items():
        if model == "after":
            found.setdefault((metric, steps), []).append(value - by_key[metric, steps, seed, "before"])
    return [{"metric": m, "steps": n, "chunk": last, **_moments(d)} for (m, n), d in found.items()]


# ---------------------------------------------------------------------------- writing


def write(found: Mapping[str, Any], out: Path) -> None:
    """drift.json, drift.md and drift.png under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "drift.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "drift.md").write_text(markdown(found))
    plot(found, out / "drift.png")


def _lines(found: Mapping[str, Any], metric: str) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Records by (model, steps), in the order of chunks."""
    lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in found["records"]:
        if record["metric"] == metric:
            lines.setdefault((record["model"], record["steps"]), []).append(record)
    return {key: sorted(line, key=lambda r: r["chunk"]) for key, line in lines.items()}


def _name(model: str, steps: int) -> str:
    return NAMES[model] + (f", {steps} step{'s' * (steps > 1)}" if steps else "")


def markdown(found: Mapping[str, Any]) -> str:
    """A table a metric, and what stage 2 changed in the last chunk."""
    settings, machine = found["settings"], found["hardware"]
    lines = [
        "# Drift from chunk to chunk",
        "",
        f"Written by `python -m benchmarks.drift` for a run of the recipe `{found['recipe']}` (flowmap "
        f"{found['flowmap']}); `drift.json` holds all. Mean ± standard deviation over {len(settings['seeds'])} seeds × "
        f"{settings['samples']} samples of {found['prompts']} held-out prompts; the same noise for every network. "
        f"The teacher has guidance {found['guidance']:g}.",
        "",
    ]
    for metric, meaning in METRICS.items():
        table = _lines(found, metric)
        first = next(iter(table.values()))
        lines += [
            f"## {metric.replace('_', ' ').capitalize()}",
            "",
            f"{meaning[0].upper()}{meaning[1:]}. Columns: the chunk's first video frame.",
            "",
            "| | " + " | ".join(str(r["first_frame"]) for r in first) + " |",
            "|---" * (len(first) + 1) + "|",
            *(
                f"| {_name(*key)} | " + " | ".join(f"{r['mean']:.3f} ± {r['std']:.3f}" for r in line) + " |"
                for key, line in table.items()
            ),
            "",
        ]
    return "\n".join(
        [
            *lines,
            "## What stage 2 changed in the last chunk",
            "",
            "After − before, seed by seed.",
            "",
            "| | steps | difference |",
            "|---|---|---|",
            *(
                f"| {d['metric'].replace('_', ' ')} | {d['steps']} | {d['mean']:+.3f} ± {d['std']:.3f} |"
                for d in found["stage_2"]
            ),
            "",
            f"Measured on {machine['cpu']}, torch {machine['torch']}.",
            "",
        ]
    )


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Against the chunk; bands are one standard deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        counts = sorted({steps for _, steps in _lines(found, metric) if steps})
        for (model, steps), line in _lines(found, metric).items():
            x, y, s = ([r[name] for r in line] for name in ("chunk", "mean", "std"))
            dashes = DASHES[counts.index(steps) % len(DASHES)] if steps else "-."
            axes.plot(x, y, dashes, color=COLOURS[model], marker="o", markersize=3, label=_name(model, steps))
            band = [a - b for a, b in zip(y, s, strict=True)], [a + b for a, b in zip(y, s, strict=True)]
            axes.fill_between(x, *band, color=COLOURS[model], alpha=0.15, linewidth=0)
        axes.set_xticks(x, [f"{r['first_frame']}" for r in line])
        axes.set_xlabel("first video frame of the chunk", fontsize=9)
        axes.set_title(metric.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
