"""The report of `law_drift`: a record a chunk, what the gradient through the history changed, tables, a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from . import jobs
from .curves import SURE, interval, table
from .law_drift_jobs import Drift
from .law_jobs import GROUPS
from .law_lines import moments_of

TITLES = {
    "absolute_drift": "Mean | ink / ink of the first frame − 1 |, in percent",
    "glyph_distance": "Energy distance of single frames' glyphs to real ones, times 100",
}
PAIRS = (("history_grad", "stage_2"), ("self_gradient_forcing", "self_forcing"))
"""With the gradient through the history, and without."""
DRAWN = (("stage_1", "#2ca02c"), ("stage_2", "#1f77b4"), ("history_grad", "#ff7f0e"), ("real", "#777777"))
DASHES = ("-", "--")
SHOWN = 5
"""Columns of a table."""
Record: TypeAlias = Mapping[str, Any]
Found: TypeAlias = Mapping[int, Mapping[str, Any]]  # by seed


def summarise(some: Sequence[Drift]) -> dict[str, Any]:
    """records: of every model, by chunk. differences: of PAIRS in the last chunk, the seeds that both have."""
    found = {key: one for key, one in _by_line(some).items() if one}
    return {"records": list(_records(found, some)), "differences": list(_differences(found))}


Key: TypeAlias = tuple[str, int, int]  # model, steps, longer


def _by_line(some: Sequence[Drift]) -> dict[Key, Found]:
    return {
        (model, steps, longer): {
            job.seed: one
            for job in some
            if (job.model, job.steps, job.longer) == (model, steps, longer) and (one := job.found) is not None
        }
        for model, steps, longer in dict.fromkeys((job.model, job.steps, job.longer) for job in some)
    }


def _records(found: Mapping[Key, Found], some: Sequence[Drift]) -> Iterator[Record]:
    """Mean and standard error over training seeds; of one seed, over its samples."""
    title, samples = {job.model: job.title for job in some}, some[0].samples
    for metric in TITLES:
        for (model, steps, longer), by_seed in found.items():
            first = next(iter(by_seed.values()))
            for chunk, frame in enumerate(first["bounds"][:-1]):
                yield {
                    "method": model,
                    "title": title[model],
                    "sampler": first["sampler"],
                    "metric": metric,
                    "better": "lower",
                    "steps": steps,
                    "longer": longer,
                    "chunk": chunk,
                    "first_frame": frame,
                    **moments_of(*_of(by_seed, metric, chunk)),
                    "samples": samples,
                }


def _of(by_seed: Found, metric: str, chunk: int) -> tuple[dict[int, float], dict[int, list[float]]]:
    whole = {seed: one["chunks"][metric][chunk] for seed, one in by_seed.items()}
    return whole, {seed: [w[metric][chunk] for w in one["without"]] for seed, one in by_seed.items()}


def _differences(found: Mapping[Key, Found]) -> Iterator[Record]:
    """The noise of a seed is the same, and so is stage 1 of AnyFlow."""
    for metric in TITLES:
        for model, before in PAIRS:
            for (name, steps, longer), mine in found.items():
                theirs = found.get((before, steps, longer), {})
                both = [seed for seed in mine if seed in theirs]
                if name != model or not both:
                    continue
                last = len(mine[both[0]]["bounds"]) - 2
                (a, left_a), (b, left_b) = (_of({s: one[s] for s in both}, metric, last) for one in (mine, theirs))
                left = {s: [x - y for x, y in zip(left_a[s], left_b[s], strict=True)] for s in both}
                told = moments_of({s: a[s] - b[s] for s in both}, left)
                where = {"steps": steps, "longer": longer, "chunk": last}
                yield {"method": model, "from": before, "metric": metric, **where, **told}


def wide(one: Record) -> float:
    """Half of the interval's width."""
    return interval(one["se"], one["seeds"] if one["se_of"] == "seeds" else GROUPS)


# ---------------------------------------------------------------------------- tables


def markdown(found: Mapping[str, Any]) -> str:
    records = found["records"]
    lines = [
        "# Drift from chunk to chunk",
        "",
        "Written by `python -m benchmarks.law_drift`; `law_drift.json` holds all. Mean ± standard error over training "
        "seeds (n), or with one seed over its samples; a chunk is a latent frame, training has five. All is better "
        "lower.",
        "",
    ]
    for metric, longer in dict.fromkeys((r["metric"], r["longer"]) for r in records):
        some = [r for r in records if (r["metric"], r["longer"]) == (metric, longer)]
        chunks = sorted({r["chunk"] for r in some})
        shown = chunks[:: max(1, (len(chunks) - 1) // (SHOWN - 1))]
        rows = []
        for method, steps in dict.fromkeys((r["method"], r["steps"]) for r in some):
            at = {r["chunk"]: r for r in some if (r["method"], r["steps"]) == (method, steps)}
            name = at[0]["title"] + (f", {steps} step{'s' * (steps > 1)}" if steps else "")
            rows.append([name, *(_cell(at[k]) for k in shown), str(at[0]["seeds"])])
        head = [f"chunk of {len(chunks)}", *(str(k + 1) for k in shown), "n"]
        lines += [f"## {TITLES[metric]}: {len(chunks)} chunks", "", *table(head, rows)]
    return "\n".join([*lines, *_changed(found)]).rstrip() + "\n"


def _cell(one: Record, sign: str = "") -> str:
    return f"{100 * one['mean']:{sign}.2f} ± {100 * one['se']:.2f}"


def _changed(found: Mapping[str, Any]) -> list[str]:
    titles = {r["method"]: r["title"] for r in found["records"]}
    rows = [
        [
            titles[d["method"]],
            d["metric"].replace("_", " "),
            f"{d['chunk'] + 1}",
            str(d["steps"]),
            _cell(d, "+"),
            "within the interval" if abs(d["mean"]) <= wide(d) else "better" if d["mean"] < 0 else "worse",
            str(d["seeds"]),
        ]
        for d in found["differences"]
    ]
    head = ["", "measure, as above", "last chunk", "steps", "with − without", f"by a {SURE:.0%} interval", "n"]
    note = "Seed by seed: the noise is the same, and AnyFlow's stage 1 is."
    return ["## What the gradient through the history changed", "", note, "", *table(head, rows)] if rows else []


# ---------------------------------------------------------------------------- files


def write(found: Mapping[str, Any], out: Path, pictures: Path) -> None:
    """law_drift.json and law_drift.md under `out`; history_grad.png."""
    jobs.write(out / "law_drift.json", found["records"])
    jobs.write(out / "law_drift_differences.json", found["differences"])
    (out / "law_drift.md").write_text(markdown(found))
    plot(found, pictures / "history_grad.png")


def plot(found: Mapping[str, Any], path: Path) -> None:
    """The longest videos, against the chunk; bands are intervals at the fewest steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    longest = max((r["longer"] for r in found["records"]), default=1)
    counts = sorted({r["steps"] for r in found["records"] if r["steps"]})
    for axes, (metric, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
        for method, colour in DRAWN:
            some = [r for r in found["records"] if (r["method"], r["metric"], r["longer"]) == (method, metric, longest)]
            for steps in dict.fromkeys(r["steps"] for r in some):
                line = [r for r in some if r["steps"] == steps]
                x, y, w = [r["chunk"] + 1 for r in line], *([100 * f(r) for r in line] for f in (_mean, wide))
                dashes = DASHES[counts.index(steps) % len(DASHES)] if steps else ":"
                name = f"{line[0]['title']}{f', {steps} steps' if steps else ''} (n = {line[0]['seeds']})"
                axes.plot(x, y, dashes, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
                if steps in (0, counts[0]):
                    low, high = ([a + k * b for a, b in zip(y, w, strict=True)] for k in (-1, 1))
                    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axvspan(1, 5, color="black", alpha=0.04, linewidth=0)
        axes.set_xlabel("chunk (grey: as long as in training)", fontsize=9)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _mean(one: Record) -> float:
    mean: float = one["mean"]
    return mean
