"""The parts of the page that say in numbers how a run went."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..training.store.health import PREVIEWS
from ..validators import counted
from .chart import Line, chart
from .facts import Cost, Facts

FEW = 16
"""Samples of a seed, below which a quality curve says nothing."""
SHORT = 20
"""Iterations of a whole run, below which it is a trial."""
STYLES: Mapping[str, str] = {
    "teacher": "t",
    "before": "t",
    "student": "a",
    "after": "a",
    "student, re-noised": "b",
    "after, re-noised": "b",
}
ARROWS = {"lower": "lower is better", "higher": "higher is better", "one": "1 is as real clips"}
MEASURES: Mapping[str, str] = {
    "latent_mean": "how far the mean of latents is off, in deviations",
    "latent_deviation": "spread of latents, over the teacher's",
    "saturation": "colour, over the teacher's",
    "contrast": "light and dark, over the teacher's",
    "grain": "fine detail, over the teacher's: noise raises it, blur lowers it",
    "motion": "change from frame to frame, over the teacher's",
    "still": "share of frames that stand still, less the teacher's",
    "drift": "change from the first chunk to the last, more than the teacher's",
    "variety": "distance of two samples of a prompt, over the teacher's",
    "paired_error": "distance to the teacher's own result from the same noise; no limit",
}


def quality(facts: Facts) -> str:
    """Each metric against the number of steps."""
    if not facts.curve:
        return ""
    names = {record["metric"]: record["better"] for record in facts.curve}
    tuned = any(r["model"] == "teacher" and r["sampler"] != "euler" for r in facts.curve)
    real, found = facts.manifest.get("real", {}), []
    lines_of = {name: list(_lines([r for r in facts.curve if r["metric"] == name], tuned)) for name in names}
    for name, lines in lines_of.items():
        level = ("real clips", real[name]["mean"]) if name in real else None
        drawn = chart(lines, x="steps", log_x=True, level=level)
        found.append(_figure(drawn, name.replace("_", " "), ARROWS[names[name]]))
    seen = {line.name: line.style for lines in lines_of.values() for line in lines}
    legend = [*seen.items(), *([("real clips, the best there can be", "level")] if real else [])]
    samples, seeds = facts.manifest.get("samples_per_seed", 0), len(facts.manifest.get("seeds", ()))
    told = f"{counted(seeds, 'seed')} of {counted(samples, 'sample')}, on the prompts of the recipe's evaluation."
    told += " Bands are the spread over seeds." if seeds > 1 else ""
    what = f"With {counted(samples, 'sample')} a seed these numbers say that evaluation works, and nothing else."
    few = f'<p class="bad">{what}</p>'
    more = "<b>Re-noised</b> is the same student, sampled as consistency models are." if "b" in seen.values() else ""
    return (
        f"<h2>Quality against the number of steps</h2><p>{told} {more}</p>{few if samples < FEW else ''}"
        f'{_legend(legend)}<div class="charts">{"".join(found)}</div>'
    )


def _lines(records: Sequence[Mapping[str, Any]], tuned: bool) -> Iterator[Line]:
    first = {"teacher": "before", "student": "after"} if tuned else {}
    for key in dict.fromkeys((r["model"], r["sampler"]) for r in records):
        own = sorted((r for r in records if (r["model"], r["sampler"]) == key), key=lambda r: r["steps"])
        name = first.get(key[0], key[0]) + (", re-noised" if key[1] in ("consistency", "phased") else "")
        points = [(r["steps"], r["mean"]) for r in own]
        yield Line(name, points, STYLES.get(name, "d"), [r["std"] for r in own])


def health(facts: Facts) -> str:
    """Every measure over the iterations, at each number of steps; and the alarms."""
    records = [record for record in facts.health if record.get("values")]
    if not records:
        return ""
    counts = list(records[-1]["values"])
    judged = str(records[-1]["judged"])
    others = [n for n in counts if n != judged]
    styles = {judged: "a", **dict(zip(others, ("b", "c", "d"), strict=False))}
    found = []
    for name, what in MEASURES.items():
        lines = [
            Line(counted(int(n), "step"), points, styles.get(n, "d"))
            for n in counts
            if (points := _over(facts, records, name, n))
        ]
        low, high = records[-1].get("limits", {}).get(name, (None, None))
        limits = (-math.inf if low is None else low, math.inf if high is None else high)
        if lines:
            drawn = chart(lines, x="iterations", whole=True, limits=limits, marks=_marks(facts))
            found.append(_figure(drawn, name.replace("_", " "), what))
    alarms = [
        f"<li>{escape(facts.method(r['stage']))}, after {counted(r['done'], 'iteration')}: {escape(text)}</li>"
        for r in records
        for text in r.get("alarms", {}).values()
    ]
    told = f'<ul class="bad">{"".join(alarms)}</ul>' if alarms else '<p class="good">No alarm was raised.</p>'
    legend = [(f"{counted(int(n), 'step')}{', judged' if n == judged else ''}", styles.get(n, "d")) for n in counts]
    return (
        "<h2>Health</h2><p>The student's samples beside the teacher's, on the same noise and prompts. Samples of "
        f"{judged} steps are judged; of fewer steps they may be worse. Dotted: a new stage.</p>"
        f'{told}{_legend([*legend, ("alarm", "alarm")])}<div class="charts">{"".join(found)}</div>'
    )


def _over(facts: Facts, records: Sequence[Mapping[str, Any]], name: str, steps: str) -> list[tuple[float, float]]:
    return [
        (facts.before(r["stage"]) + r["done"], r["values"][steps][name])
        for r in records
        if name in r["values"].get(steps, {})
    ]


def course(facts: Facts) -> str:
    """The pictures of all previews, one at a time."""
    shown = sorted((facts.path / PREVIEWS).glob("stage_*/grid.png"))
    if not shown:
        return ""
    figures = []
    for k, file in enumerate(shown):
        _, stage, done = file.parent.name.split("_")
        told = f"stage {stage} ({escape(facts.method(int(stage)))}), after {counted(int(done), 'iteration')}"
        hidden = " hidden" if k + 1 < len(shown) else ""
        picture = f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}"
        figures.append(
            f'<figure{hidden}><img alt="samples, {told}" src="{picture}">'
            f"<figcaption>{told}: first, middle and last frame</figcaption></figure>"
        )
    last = len(shown) - 1
    return (
        '<h2>In the course of training</h2><div class="player course"><div class="bar"><label>earlier '
        f'<input id="course" type="range" min="0" max="{last}" value="{last}" aria-label="preview"> later</label></div>'
        f"{''.join(figures)}</div>"
    )


def losses(facts: Facts) -> str:
    """Losses open, what else was recorded folded."""
    columns = facts.columns()
    if not columns:
        return ""
    main = [name for name in columns if "loss" in name or name.endswith("dmd/gradient")]
    rest = [name for name in columns if name not in main and not name.endswith("/skipped")]
    drawn = {name: _recorded(facts, name, columns[name]) for name in (*main, *rest)}
    return (
        "<h2>Losses</h2><p>The loss of a flow map need not fall for samples to become better: look at health, and at "
        f'the curve. Dotted: a new stage.</p><div class="charts">{"".join(drawn[name] for name in main)}</div>'
        f'<details><summary>Learning rates, gradient norms and {len(rest)} more</summary><div class="charts">'
        f"{''.join(drawn[name] for name in rest)}</div></details>"
    )


def _recorded(facts: Facts, name: str, stages: Mapping[int, Sequence[tuple[float, float]]]) -> str:
    lines = [Line(name, _thinned(points), "a") for points in stages.values()]
    role, _, what = name.partition("/")
    return _figure(
        chart(lines, x="iterations", whole=True, marks=_marks(facts)), what.replace("/", " "), f"of the {role}"
    )


def _thinned(points: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """Means of neighbours, where there are more than can be seen."""
    size = math.ceil(len(points) / most)
    parts = [points[k : k + size] for k in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in p) / len(p), math.fsum(y for _, y in p) / len(p)) for p in parts]


def cost(facts: Facts) -> str:
    """Time of every stage, so far and to come, as the records say."""
    stages = [*facts.costs()]
    if not stages:
        return ""
    rows = []
    for one in stages:
        coming = "not known before it starts" if one.to_come is None else time_of(one.to_come)
        cells = [
            f"{one.done} of {one.steps}",
            "" if one.pace is None else f"{one.pace:.3g} s",
            "" if one.spent is None else time_of(one.spent),
            coming if one.left else "none",
        ]
        rows.append(f"<tr><td>{escape(one.method)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th class=n>{name}</th>" for name in ("iterations", "one takes", "so far", "to come"))
    peak = max((r.get("peak_gib", 0.0) for r in facts.records), default=0.0)
    there = f" Most memory of the first process: {peak:.3g} GiB." if peak else ""
    lived = f" From the last start to the last sign of life: {time_of(facts.lived)}." if facts.lived else ""
    on = f" on {facts.devices} {facts.device}s" if facts.devices > 1 else f" on one {facts.device}"
    so_far, to_come = _both(facts, stages)
    return (
        f"<h2>Cost</h2><p>Training so far{on}: {so_far}; to come: {to_come}. Previews and checkpoints on the way "
        f"are in it, evaluation at the end is not.{lived}{there}</p>"
        f'<div class="wide"><table><tr><th>stage</th>{head}</tr>{"".join(rows)}</table></div>'
    )


def times(facts: Facts) -> str | None:
    """Of the training, in a line; None where no record says it."""
    stages = [*facts.costs()]
    if not any(one.spent for one in stages):
        return None
    so_far, to_come = _both(facts, stages)
    return f"{so_far} so far, {to_come} to come"


def _both(facts: Facts, stages: Sequence[Cost]) -> tuple[str, str]:
    """So far and to come."""
    left = math.fsum(one.to_come or 0.0 for one in stages)
    unknown = any(one.left and one.to_come is None for one in stages)
    so_far = _hours(math.fsum(one.spent or 0.0 for one in stages), facts)
    return so_far, f"{'at least ' if unknown else ''}{_hours(left, facts)}" if left or unknown else "none"


def _hours(seconds: float, facts: Facts) -> str:
    """With GPU-hours, where several share the work."""
    whole = facts.devices * seconds
    return time_of(seconds) + (f" ({whole / 3600:.3g} {facts.device}-hours)" if facts.devices > 1 else "")


def recipe(facts: Facts) -> str:
    rows = []
    for stage in facts.stages:
        optimizer = stage.get("optimizer", {})
        rates = [optimizer] if "lr" in optimizer else [v for v in optimizer.values() if isinstance(v, dict)]
        lr = ", ".join(f"{one['lr']:g}" for one in rates if "lr" in one)
        cells = (stage["method"]["name"], stage["steps"], stage["batch"], lr)
        rows.append(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("method", "iterations", "batch", "learning rate"))
    whole = json.dumps(_without_places(facts.recipe), indent=1, ensure_ascii=False)
    hardware = facts.environment
    packages = {k: v for k, v in hardware.get("packages", {}).items() if v != "not installed"}
    machine = {
        "device": hardware.get("cuda")
        or f"CPU, {hardware.get('processor', '')}, {hardware.get('threads', '?')} threads",
        "system": f"Python {hardware.get('python', '?')}, {hardware.get('platform', '?')}",
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
    ran = "".join(f"<tr><th>{name}</th><td>{escape(str(text))}</td></tr>" for name, text in machine.items())
    return (
        f'<h2>Recipe</h2><div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        f"<details><summary>All of it</summary><pre>{escape(whole)}</pre></details>"
        f'<h2>Hardware</h2><div class="wide"><table>{ran}</table></div>'
    )


def _without_places(value: Any) -> Any:
    """Paths of this machine by their last two names: the page goes elsewhere."""
    if isinstance(value, dict):
        return {name: _without_places(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    if isinstance(value, str) and value.startswith("/") and "\n" not in value:
        return str(Path(*Path(value).parts[-2:]))
    return value


def time_of(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def _marks(facts: Facts) -> list[float]:
    return [float(facts.before(k)) for k in range(1, len(facts.stages))]


def _figure(drawn: str, name: str, what: str) -> str:
    return f"<figure><figcaption>{escape(name)} <span>{escape(what)}</span></figcaption>{drawn}</figure>"


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    return (
        f'<ul class="legend">{"".join(f"<li><i class={style}></i>{escape(name)}</li>" for name, style in entries)}</ul>'
    )
