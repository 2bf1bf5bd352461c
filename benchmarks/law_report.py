"""The report of `law`: records, slopes seed by seed, tables with what they say by rule, two figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import jobs
from .curves import FEW, MANY, SURE, table
from .law_figures import Record, every, families, wide
from .law_jobs import METRICS, Settings
from .law_lines import PRIMARY, Line, lines
from .law_rows import ABLATIONS, ROWS, Row
from .law_tuning import FACTORS, score, trials, tried

TITLES = {
    "energy_distance": "Energy distance of latents to real clips of the same prompt, lower is better",
    "feature_distance": "Energy distance in the classifier's features, lower is better",
    "variety": "Variety within a prompt, 1 is real",
}
SAMPLERS = {"flow_map": "along the flow", "consistency": "re-noised", "euler": "Euler"}


def summarise(settings: Settings, folder: Path) -> dict[str, Any]:
    """records: the primary metric first. slopes: of every line that has both ends."""
    found = lines(settings, folder)
    return {
        "records": list(_records(found, settings)),
        "slopes": list(_slopes(found)),
        "differences": list(_differences(found)),
        "samples": settings.samples,
        "sweep": [one for row in ROWS if tried(folder) and (one := _swept(row, settings, folder))],
    }


def _swept(row: Row, settings: Settings, folder: Path) -> dict[str, Any] | None:
    """The scores of a row's trials by the factor of its rates; None while there are none."""
    found = [score(trial) for trial in trials(row, settings, folder)]
    if set(found) == {None}:
        return None
    scores = {f"{factor:.3g}": value for factor, value in zip(FACTORS, found, strict=True)}
    return {"method": row.name, "title": row.title, "scores": scores}


def _records(found: Sequence[Line], settings: Settings) -> Iterator[Record]:
    real = next((line for line in found if line.name == "real"), None)
    for metric, better in METRICS.items():
        floor = real and real.moments(metric, 0)
        for line in found:
            for steps in sorted(line.cells):
                if (told := line.moments(metric, steps)) is not None:
                    yield {
                        **_named(line),
                        "metric": metric,
                        "better": better,
                        "steps": steps,
                        **told,
                        "samples": settings.samples,
                        "floor": floor["mean"] if floor else None,
                        "calls": line.calls,
                        "seconds": line.seconds(),
                    }


def _slopes(found: Sequence[Line]) -> Iterator[Record]:
    for metric, better in METRICS.items():
        for line in found:
            if (told := line.slope(metric)) is not None:
                yield {**_named(line), "metric": metric, "better": better, "from": FEW, "to": MANY, **told}


def _differences(found: Sequence[Line]) -> Iterator[Record]:
    """From the teacher at as many steps, and from half of it: below zero is nearer, and twice as near."""
    teacher = next((line for line in found if line.name == "teacher"), None)
    for line in found if teacher else ():
        for steps in sorted(n for n in line.cells if n and line.name != "teacher"):
            for share in (1.0, 0.5):
                if (told := line.beside(teacher, PRIMARY, steps, share)) is not None:
                    yield {**_named(line), "metric": PRIMARY, "steps": steps, "share_of_teacher": share, **told}


def _named(line: Line) -> dict[str, str]:
    return {"method": line.name, "title": line.title, "form": line.form, "sampler": line.sampler}


# ---------------------------------------------------------------------------- tables


def markdown(found: Mapping[str, Any]) -> str:
    parts = [
        [
            "# The any-step law without guidance",
            "",
            "Written by `python -m benchmarks.law`; `law.json` and the files beside it hold all. Students of the "
            "shipped teacher at guidance 1, the data's velocity, batches of 16, as many calls of the student each as "
            f"AnyFlow's stages 1 + 2 have; {found['samples']} samples a seed on held-out prompts, the same noise for "
            "all. Mean ± standard error over training seeds (n); with one seed, over its samples, leaving an eighth "
            "of them out in turn.",
            "",
        ],
        *(_table(found, metric, ablations=False) for metric in METRICS),
        _rules(found),
        _table(found, PRIMARY, ablations=True),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _table(found: Mapping[str, Any], metric: str, ablations: bool) -> list[str]:
    some = [r for r in found["records"] if r["metric"] == metric and _belongs(r["method"], ablations)]
    steps = sorted({r["steps"] for r in some if r["steps"]})
    slopes = {(s["method"], s["sampler"]): s for s in found["slopes"] if s["metric"] == metric}
    rows = []
    for key in dict.fromkeys((r["method"], r["sampler"]) for r in some):
        at = {r["steps"]: r for r in some if (r["method"], r["sampler"]) == key}
        one = next(iter(at.values()))
        cells = [_cell(at.get(n)) for n in steps] if 0 not in at else [_cell(at[0]), *[""] * (len(steps) - 1)]
        name = one["title"] if 0 in at else f"{one['title']} ({SAMPLERS[one['sampler']]})"
        cost = "" if one["seconds"] is None else f"{one['seconds'] / 60:.1f}"
        told = slopes.get(key)
        rows.append([name, *cells, "" if told is None else _cell(told, "+"), str(one["seeds"]), one["form"], cost])
    title = (
        f"## AnyFlow with one change: {TITLES[metric][0].lower()}{TITLES[metric][1:]}"
        if ablations
        else f"## {TITLES[metric]}"
    )
    head = ["", *map(str, steps), f"a doubling, {FEW} to {MANY}", "n", "form", "minutes"]
    missing = [row.title for row in (ABLATIONS if ablations else ROWS) if row.name not in {r["method"] for r in some}]
    absent = [f"Not run: {'; '.join(missing)}.", ""] if missing else []
    return [title, "", *(table(head, rows) if rows else []), *(absent if metric == PRIMARY else [])]


def _belongs(method: str, ablations: bool) -> bool:
    names = {row.name for row in ABLATIONS}
    return (method in names or method == "anyflow") if ablations else method not in names


def _cell(one: Record | None, sign: str = "") -> str:
    return "–" if one is None else f"{one['mean']:{sign}.4f} ± {one['se']:.4f}"


def rules(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was hoped for, and what the numbers say: a slope whose interval is beside 0 goes up or down."""
    for told in found["differences"]:
        if (told["method"], told["sampler"], told["steps"], told["share_of_teacher"]) == (
            "anyflow",
            "flow_map",
            FEW,
            0.5,
        ):
            yield f"AnyFlow at {FEW} steps is twice as near as the teacher at {FEW}", _said(told, "yes", "no")
    for told in found["slopes"]:
        if told["metric"] == PRIMARY and _belongs(told["method"], False):
            went = _said(told, "better", "worse")
            yield f"{told['title']} ({SAMPLERS[told['sampler']]}), from {FEW} steps to {MANY}", went


def _said(one: Record, below: str, above: str) -> str:
    if abs(one["mean"]) <= wide(one):
        return "within the interval"
    return below if one["mean"] < 0 else above


def _rules(found: Mapping[str, Any]) -> list[str]:
    rows = [list(pair) for pair in rules(found)]
    if not rows:
        return []
    note = f"By rule: a slope of the energy distance of latents counts where its {SURE:.0%} interval is beside 0."
    return ["## What the numbers say", "", note, "", *table(["", "here"], rows)]


# ---------------------------------------------------------------------------- files


def write(found: Mapping[str, Any], out: Path, pictures: Path) -> None:
    """law.json, law_slopes.json, law_differences.json, law.md under `out`; law_sweep.json of a sweep; two pictures."""
    jobs.write(out / "law.json", found["records"])
    jobs.write(out / "law_slopes.json", found["slopes"])
    jobs.write(out / "law_differences.json", found["differences"])
    if found["sweep"]:
        jobs.write(out / "law_sweep.json", found["sweep"])
    (out / "law.md").write_text(markdown(found))
    families(found, pictures / "law.png")
    every(found, pictures / "law_all.png")
