"""The figures of `law`: four families in one panel, and every method in a panel of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, TypeAlias

from .curves import interval
from .law_jobs import GROUPS
from .law_lines import PRIMARY
from .law_rows import ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, GREEN, BLUE, ORANGE, RED = "#777777", "#2ca02c", "#1f77b4", "#ff7f0e", "#d62728"
DRAWN = (
    ("teacher", "euler", GREY, "teacher, Euler steps"),
    ("anyflow_1", "flow_map", GREEN, "AnyFlow, stage 1 alone"),
    ("anyflow", "flow_map", BLUE, "AnyFlow, stages 1 + 2, along the flow"),
    ("anyflow", "consistency", ORANGE, "the same weights, re-noised"),
    ("rcm", "consistency", RED, "rCM, a consistency method"),
)
LEVEL = "energy distance of latents, lower is better"
ACROSS, TOP = 4, 0.25
Record: TypeAlias = Mapping[str, Any]


def wide(one: Record) -> float:
    """Half of the interval's width."""
    return interval(one["se"], one["seeds"] if one["se_of"] == "seeds" else GROUPS)


def families(found: Mapping[str, Any], path: Path) -> None:
    """Four families against the number of steps; bands are intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for method, sampler, colour, label in DRAWN:
        some = _line(found, method, sampler)
        if some:
            _draw(axes, some, colour, f"{label} (n = {some[0]['seeds']})")
    for real in _line(found, "real", "euler"):
        axes.axhline(real["mean"], color="black", linewidth=0.8, linestyle="--", label="other real clips, as measured")
    axes.axhline(0.0, color="black", linewidth=0.8, linestyle=":", label="real clips, on average")
    _steps(axes, found)
    axes.set_xlabel("steps")
    axes.set_ylabel(LEVEL)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def every(found: Mapping[str, Any], path: Path) -> None:
    """A panel a method, beside the teacher; what is above the panel is written at its edge."""
    from matplotlib.figure import Figure

    shown = [row for row in ROWS if any(r["method"] == row.name for r in found["records"])]
    down = -(-max(len(shown), 1) // ACROSS)
    figure = Figure(figsize=(2.8 * ACROSS, 0.8 + 2.5 * down), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(down, ACROSS, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, row in zip(panels, shown, strict=False):
        _draw(axes, _line(found, "teacher", "euler"), GREY, "teacher")
        for sampler, colour, label in (("flow_map", BLUE, "along the flow"), ("consistency", ORANGE, "re-noised")):
            some = _line(found, row.name, sampler)
            _draw(axes, some, colour, label)
            _above(axes, some, colour)
        axes.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(fill(row.title, 38), fontsize=10)
        _steps(axes, found)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    panels[0].set_ylim(-0.02, TOP)
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel("steps", fontsize=10)
    figure.supylabel(LEVEL, fontsize=10)
    figure.savefig(path, dpi=130)


def _line(found: Mapping[str, Any], method: str, sampler: str) -> list[Record]:
    return [r for r in found["records"] if (r["method"], r["sampler"], r["metric"]) == (method, sampler, PRIMARY)]


def _draw(axes: Axes, some: Sequence[Record], colour: str, label: str) -> None:
    if not some:
        return
    steps, mean, half = [r["steps"] for r in some], [r["mean"] for r in some], [wide(r) for r in some]
    low, high = ([m + k * w for m, w in zip(mean, half, strict=True)] for k in (-1, 1))
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(steps, mean, color=colour, marker="o", markersize=4, label=label)


def _above(axes: Axes, some: Sequence[Record], colour: str) -> None:
    for r in some:
        if r["mean"] > TOP:
            axes.annotate(f"{r['mean']:.2g}", (r["steps"], TOP), ha="center", va="top", fontsize=8, color=colour)


def _steps(axes: Axes, found: Mapping[str, Any]) -> None:
    shown = sorted({r["steps"] for r in found["records"] if r["steps"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(n) for n in shown])
    axes.tick_params(labelbottom=True)
    axes.grid(alpha=0.25)
