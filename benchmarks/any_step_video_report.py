"""The report of `any_step_video`: a JSON file, a picture and tables, with what the numbers say by rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import any_step_results
from . import any_step_tables as tables
from .any_step_results import Line, Results, Study

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
CAUSAL = {"anyflow_causal", "self_forcing", "self_forcing_32"}


def rivals(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Those on the same backbone."""
    names = dict.fromkeys(line.method for line in lines if line.method != "teacher")
    return {
        "anyflow": [name for name in names if name not in CAUSAL | {"anyflow"}],
        "anyflow_causal": [name for name in names if name in CAUSAL - {"anyflow_causal"}],
    }


STUDY = Study(
    name="any_step_video",
    metrics={
        "frechet_distance": ("Fréchet distance to real clips of the same prompts", "lower"),
        "label_accuracy": ("share of clips in which the prompt's digit is read", "higher"),
        "direction_accuracy": ("share of clips that start the prompt's way", "higher"),
        "speed_error": ("mean error of the speed, pixels a frame", "lower"),
    },
    perfect=("real", "real clips, through the VAE"),
    rivals=rivals,
    samplers={"flow_map": "along the flow", "consistency": "re-noised", "euler": "Euler, guided"},
    word="Fréchet distance",
    digits=2,
)


def lines(entries: Iterable[tuple[str, str, bool]]) -> tuple[Line, ...]:
    """Of entries (name, title, whether re-noised too), the teacher first."""
    found = [Line("teacher", "teacher")]
    for name, title, renoised in entries:
        found += [Line(name, title)]
        found += [Line(name, f"{title}: the same weights re-noised", other=True)] if renoised else []
    return tuple(found)


def score(result: Mapping[str, Any]) -> float:
    """Of a trial; infinite where it diverged."""
    return any_step_results.score(STUDY, result)


def summarise(results: Results) -> dict[str, Any]:
    """What the JSON file holds."""
    return any_step_results.summarise(STUDY, results)


def write(found: Mapping[str, Any], out: Path) -> None:
    """any_step_video.json, .png and .md under `out`."""
    tables.write(STUDY, found, markdown(found), out)
    plot(found, out / f"{STUDY.name}.png")


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, and what they say by rule."""
    calls = (
        ", of some frames of a video their share (a causal network's clean history counts as frames it is called on)"
    )
    caveat = (
        "Networks, clips and training are thousands of times smaller than a video model's: levels say nothing about "
        "one, and a direction that shows here need not show there."
    )
    return tables.text_of(
        [
            _head(found),
            tables.missing(found),
            tables.primary(STUDY, found, "The teacher takes two calls a step."),
            tables.readings(STUDY, found),
            tables.against(STUDY, found),
            tables.others(STUDY, found),
            tables.costs(found, calls),
            tables.rates(STUDY, found),
            tables.where(found, caveat),
        ]
    )


def _head(found: Mapping[str, Any]) -> list[str]:
    s = found["settings"]
    return [
        "# Any-step sampling on video",
        "",
        f"Written by `python -m benchmarks.any_step_video` (flowmap {found['flowmap']}); `{STUDY.name}.json` holds "
        "all. Students of one teacher, the shipped tiny Wan of 1.2 M parameters that makes clips of moving digits, "
        f"trained whole (no adapters) in batches of {s['batch']} with the same number of calls of the student, "
        f"{s['budget']} on one sample. Judged with the sampler that its method names, on held-out prompts: "
        f"{s['samples']} samples for each of {len(s['seeds'])} training seeds, the noise of a seed the same for every "
        "method. Mean ± standard deviation over the training seeds, which holds that of the samples too.",
        "",
    ]


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Against the number of steps; bands are one standard deviation over the training seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 10), layout="constrained")
    for axes, (metric, (title, better)) in zip(figure.subplots(2, 2).flat, STUDY.metrics.items(), strict=True):
        for line in found["lines"]:
            at = tables.records_of(found, line["method"], metric)
            if not at:
                continue
            centre, std = [r["mean"] for r in at.values()], [r["std"] or 0.0 for r in at.values()]
            axes.plot(
                [*at],
                centre,
                DASHES[line["sampler"]],
                color=(colour := COLOURS.get(line["method"].removesuffix("_renoised"), "black")),
                marker="o",
                markersize=4,
                linewidth=2.4 if line["method"].startswith("anyflow") else 1.4,
                label=f"{line['title']} ({STUDY.samplers[line['sampler']]})",
            )
            low, high = ([m + k * s for m, s in zip(centre, std, strict=True)] for k in (-1, 1))
            axes.fill_between([*at], [max(v, 1e-3) for v in low], high, color=colour, alpha=0.12)
        key, called = STUDY.perfect
        if (perfect := found[key][metric]["mean"]) is not None:
            axes.axhline(perfect, color="black", linewidth=0.8, linestyle=":", label=called)
        axes.set_xscale("log", base=2)
        axes.set_xticks(tables.steps_of(found), [str(n) for n in tables.steps_of(found)])
        axes.set_yscale("log" if better == "lower" else "linear")
        axes.set_xlabel("steps")
        axes.set_title(f"{title} ({better} is better)", fontsize=10)
        axes.grid(alpha=0.25, which="both")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
