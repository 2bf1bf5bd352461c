"""Quality against the number of steps, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .records import Key, Record, labels

FROZEN: Mapping[str, Any] = {"color": "0.35", "linestyle": "--", "marker": "s"}
STYLES: Mapping[Key, Mapping[str, Any]] = {
    ("teacher", "euler"): FROZEN,
    ("teacher", "flow_map"): FROZEN,
    ("student", "flow_map"): {"color": "tab:blue", "linestyle": "-", "marker": "o", "linewidth": 2.2, "zorder": 3},
    ("student", "consistency"): {"color": "tab:orange", "linestyle": ":", "marker": "^"},
    ("student", "phased"): {"color": "tab:orange", "linestyle": ":", "marker": "^"},
}
RENOISED = (
    "re-noised: the same weights, sampled as consistency models are: jump to a clean sample, add fresh noise, again"
)
RANGE = 8.0
"""Values that differ by more than this factor are drawn on a logarithmic axis."""


def curves(records: Sequence[Record], real: Mapping[str, tuple[float, float]], title: str, path: Path) -> None:
    """The first metric large, the others beside it: lines are means, bands the spread over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, lines = list(dict.fromkeys(r.metric for r in records)), labels(records)
    columns = len(names) // 2
    figure = Figure(figsize=(5.2 + 3.3 * columns, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1 + columns, width_ratios=[1.7, *[1.0] * columns])
    main = figure.add_subplot(grid[:, 0])
    places = [main, *(figure.add_subplot(grid[i // columns, 1 + i % columns]) for i in range(len(names) - 1))]
    finest = max((r.steps for r in records if r.model == "teacher"), default=0)
    for axes, name in zip(places, names, strict=True):
        _panel(axes, [r for r in records if r.metric == name], real.get(name), lines, finest)
    legend(main, places)
    if any("re-noised" in label for label in lines.values()):
        figure.supxlabel(RENOISED, fontsize=8)
    figure.suptitle(_wrapped(title), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def legend(main: Any, places: Sequence[Any]) -> None:
    """Of every line of any panel, in the large one: a metric may lack a line, or what real videos have of it."""
    from matplotlib.patches import Patch

    lines = {label: line for axes in places for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    lines["spread over seeds"] = Patch(color="0.35", alpha=0.15, linewidth=0)
    main.legend([*lines.values()], [*lines], frameon=False, fontsize=9)


def _panel(
    axes: Any, records: Sequence[Record], real: tuple[float, float] | None, lines: Mapping[Key, str], finest: int
) -> None:
    """finest: of the teacher; a metric that compares with that very run has no value there, and no level."""
    for key in dict.fromkeys(r.key for r in records):
        line = sorted((r for r in records if r.key == key), key=lambda r: r.steps)
        x, y, s = ([getattr(r, name) for r in line] for name in ("steps", "mean", "std"))
        per = line[0].calls // line[0].steps
        label = lines[key] + (f" ({per} calls a step)" if per > 1 else "")
        axes.plot(x, y, label=label, markersize=4, **STYLES[key])
        band = [a - b for a, b in zip(y, s, strict=True)], [a + b for a, b in zip(y, s, strict=True)]
        axes.fill_between(x, *band, color=STYLES[key]["color"], alpha=0.15, linewidth=0)
        if line[0].model == "teacher" and x[-1] == finest:
            most = f"{lines[key].partition(',')[0]} at {x[-1]} steps"
            axes.axhline(y[-1], color="0.35", linewidth=0.8, alpha=0.5, zorder=1, label=most)
    if real is not None:
        axes.axhline(real[0], color="tab:green", linewidth=1, linestyle="-.", label="real videos", zorder=1)
    _axes(axes, records, [] if real is None else [real[0]])


def _axes(axes: Any, records: Sequence[Record], levels: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    ticks, means = sorted({r.steps for r in records}), [r.mean for r in records]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(n) for n in ticks], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    lowest, middle = min([*means, *levels]), sorted(map(abs, means))[len(means) // 2]
    if lowest > 0 and max(means) > RANGE * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.set_ylim(bottom=0.8 * lowest)
    elif lowest <= 0 < middle and max(means) > RANGE * middle:
        axes.set_yscale("symlog", linthresh=middle)  # even around 0, where an unbiased distance may fall below
    if axes.get_yscale() != "linear":
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())  # its numbers lie on each other
    if records[0].better == "higher" and max(means) <= 1:
        axes.set_ylim(top=1.03)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("steps", fontsize=9)
    arrow = {"lower": "↓", "higher": "↑", "one": "→ 1"}[records[0].better]
    axes.set_title(f"{records[0].metric.replace('_', ' ')} {arrow}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _wrapped(title: str) -> str:
    head, _, tail = title.partition(": ")
    return f"{head}\n{tail}"
