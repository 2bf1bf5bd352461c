"""The report of `any_step`: a JSON file, a picture and tables, with what the numbers say by rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import any_step_results
from . import any_step_tables as tables
from .any_step_results import Line, Results, Study, curves_of, difference
from .curves import spread, table

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


def rivals(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Those of other families."""
    own = {line.family for line in lines if line.method == "anyflow"}
    return {"anyflow": [line.key for line in lines if line.family and line.family not in own]}


STUDY = Study(
    name="any_step",
    metrics={
        "sliced_w2": ("sliced Wasserstein-2 distance to the data", "lower"),
        "outliers": ("share of samples farther than 4 σ from every mode", "lower"),
        "weight_tv": ("total variation of the modes' weights", "lower"),
        "paired_error": ("mean distance to the endpoint of the exact ODE from the same noise", "lower"),
    },
    perfect=("fresh", "a fresh draw of the data"),
    rivals=rivals,
    samplers={"flow_map": "along the flow", "consistency": "re-noised", "euler": "Euler"},
    word="sliced distance",
    digits=3,
)


def score(result: Mapping[str, Any]) -> float:
    """Of a trial; infinite where it diverged."""
    return any_step_results.score(STUDY, result)


def summarise(results: Results) -> dict[str, Any]:
    """What the JSON file holds."""
    return {**any_step_results.summarise(STUDY, results), "pairs": list(_pairs(results))}


def _pairs(results: Results) -> Iterator[dict[str, Any]]:
    curves = curves_of(STUDY, results)
    for one, other in PAIRS:
        mine, theirs = (curves.get((key, STUDY.primary), {}) for key in (one, other))
        for n in mine:
            if n in theirs:
                yield {"method": one, "other": other, "steps": n, **difference(mine[n], theirs[n])}


def write(found: Mapping[str, Any], out: Path) -> None:
    """any_step.json, .png and .md under `out`."""
    tables.write(STUDY, found, markdown(found), out)
    plot(found, out / f"{STUDY.name}.png")


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, and what they say by rule."""
    note = (
        "The distance holds two things, how much each mode gets and how sharp the modes are: a sampler may gain in one "
        "while it loses the other, as the tables further down tell."
    )
    caveat = (
        "Two dimensions are not video. Modes this narrow, without shift and guidance, exaggerate what low noise "
        "contributes, there is nothing to condition on, and the teacher makes no error: levels say nothing about a "
        "video model, and a direction that shows here need not show there."
    )
    return tables.text_of(
        [
            _head(found),
            tables.missing(found),
            tables.primary(STUDY, found, note),
            tables.readings(STUDY, found),
            tables.against(STUDY, found),
            _differ(found),
            tables.others(STUDY, found),
            tables.costs(found, ""),
            tables.rates(STUDY, found),
            tables.where(found, caveat),
        ]
    )


def _head(found: Mapping[str, Any]) -> list[str]:
    s = found["settings"]
    mixture = s["backbone"]["mixture"]
    return [
        "# Any-step sampling in two dimensions",
        "",
        f"Written by `python -m benchmarks.any_step` (flowmap {found['flowmap']}); `{STUDY.name}.json` holds all. The "
        f"data are {mixture['modes']} Gaussians of width {mixture['std']} on a circle of radius {mixture['radius']}, "
        f"every other one {mixture['ratio']:g} times as heavy; the teacher is their exact velocity. Students and "
        f"critics are MLPs of {s['backbone']['depth']} layers of {s['backbone']['width']} that begin as one network, "
        f"which learned that velocity. Every method trains in batches of {s['batch']} with the same number of calls of "
        f"the student, {s['budget']} on one sample, and is judged with the sampler that it names, on {s['samples']} "
        f"samples for each of {len(s['seeds'])} training seeds. Mean ± standard deviation over these.",
        "",
        NOT_HERE,
        "",
    ]


def _differ(found: Mapping[str, Any]) -> list[str]:
    titles, pairs = tables.titles_of(found), {(p["method"], p["other"], p["steps"]): p for p in found["pairs"]}
    rows = [
        [
            titles[one],
            titles[other],
            *(
                f"{spread(p, STUDY.digits, '+')}, {p['reading']}" if (p := pairs.get((one, other, n))) else "–"
                for n in tables.steps_of(found)
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
        *table(["first", "second", *map(str, tables.steps_of(found))], rows),
    ]


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
            at = tables.records_of(found, line["method"], STUDY.primary)
            if not at:
                continue
            root = line["method"].removesuffix("_renoised")
            colour = "#777777" if root == "teacher" else colours[roots.index(root) % len(colours)]
            centre, std = [r["mean"] for r in at.values()], [r["std"] or 0.0 for r in at.values()]
            label = f"{line['title']} ({STUDY.samplers[line['sampler']]})"
            axes.plot([*at], centre, DASHES[line["sampler"]], color=colour, marker="o", markersize=4, label=label)
            low = [max(m - s, m / 2) for m, s in zip(centre, std, strict=True)]
            axes.fill_between([*at], low, [m + s for m, s in zip(centre, std, strict=True)], color=colour, alpha=0.12)
        key, called = STUDY.perfect
        if (perfect := found[key][STUDY.primary]["mean"]) is not None:
            axes.axhline(perfect, color="black", linewidth=0.8, linestyle=":", label=called)
        axes.set_xscale("log", base=2)
        axes.set_xticks(tables.steps_of(found), [str(n) for n in tables.steps_of(found)])
        axes.set_yscale("log")
        axes.set_xlabel("steps")
        axes.set_title(f"{family}: {STUDY.metrics[STUDY.primary][0]}", fontsize=10)
        axes.grid(alpha=0.25, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
