"""The tables of a benchmark of many methods, in Markdown, and what they say by rule: never a conclusion by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowmap.atomic import write_text

from .any_step_results import Study
from .curves import EXPECTED, FEW, MANY, SURE, number, spread, table

Found = Mapping[str, Any]  # what `summarise` makes


def write(study: Study, found: Found, text: str, out: Path) -> None:
    """NAME.json and NAME.md under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{study.name}.json", json.dumps(found, indent=1) + "\n")
    write_text(out / f"{study.name}.md", text)


def steps_of(found: Found) -> list[int]:
    return list(found["settings"]["steps"])


def records_of(found: Found, key: str, metric: str) -> dict[int, Mapping[str, Any]]:
    """By number of steps."""
    return {r["steps"]: r for r in found["records"] if (r["method"], r["metric"]) == (key, metric)}


def titles_of(found: Found) -> dict[str, str]:
    return {line["method"]: line["title"] for line in found["lines"]}


def missing(found: Found) -> list[str]:
    """What an unfinished benchmark lacks."""
    short = [f"{one['title']} ({len(one['seeds'])})" for one in found["lines"] if len(one["seeds"]) < one["asked"]]
    if not short:
        return []
    asked = found["lines"][0]["asked"]
    return [f"**Not finished.** Fewer training seeds than the {asked} asked: {', '.join(short)}.", ""]


def metric(study: Study, found: Found, name: str) -> list[str]:
    """A line a method, a column a number of steps."""
    title, better = study.metrics[name]
    slopes = {s["method"]: s for s in found["slopes"] if s["metric"] == name}
    rows = []
    for line in found["lines"]:
        if at := records_of(found, line["method"], name):
            told = slopes.get(line["method"])
            rate = "–" if told is None else spread({"mean": told["slope"], "se": told["se"]}, 3, "+", "se")
            cells = [spread(at[n], study.digits) if n in at else "–" for n in steps_of(found)]
            rows.append([f"{line['title']} ({study.samplers[line['sampler']]})", *cells, rate])
    key, called = study.perfect
    if found[key][name]["seeds"]:
        rows.append([called, spread(found[key][name], study.digits), *[""] * len(steps_of(found))])
    head = ["method (sampler)", *map(str, steps_of(found)), f"slope {FEW}–{MANY}"]
    return [f"## {title[0].upper()}{title[1:]}, {better} is better", "", *table(head, rows)]


def primary(study: Study, found: Found, note: str) -> list[str]:
    """The primary metric, with the picture. note: what else there is to say of it."""
    return [
        *metric(study, found, study.primary),
        f"Slope: change of the metric with each doubling of the steps from {FEW} to {MANY}, of each seed as a share "
        f"of its value at {FEW} steps, the sign such that below zero is improvement; mean ± standard error. {note}",
        "",
        f"![curves]({study.name}.png)",
        "",
    ]


def others(study: Study, found: Found) -> list[str]:
    return [line for name in study.metrics if name != study.primary for line in metric(study, found, name)]


def readings(study: Study, found: Found) -> list[str]:
    """What the slopes say, and where that is not what the paper shows."""
    lines = {line["method"]: line for line in found["lines"]}
    rows, differs = [], []
    for told in found["slopes"]:
        if told["primary"]:
            line, expected = lines[told["method"]], EXPECTED[told["sampler"]]
            if told["se"] is not None and told["reading"] not in expected:
                differs.append(f"{line['title']} ({study.samplers[line['sampler']]}): {told['reading']}")
            rows.append([line["title"], study.samplers[line["sampler"]], " or ".join(expected), told["reading"]])
    text = [
        f"## From {FEW} steps to {MANY}",
        "",
        f"By rule: a slope of the {study.word} whose {SURE:.0%} interval is beside 0 improves or gets worse, any other "
        "is flat. Beside it what the paper shows for that sampler on video, at 1.3 B and 14 B parameters (figure 1).",
        "",
        *table(["method", "sampler", "in the paper", "here"], rows),
    ]
    if differs:
        text += ["What the paper shows is not seen here for", "", *(f"* {one}" for one in differs), ""]
    return text


def against(study: Study, found: Found) -> list[str]:
    titles = titles_of(found)
    rows = [
        [titles[c["method"]], str(c["steps"]), titles[c["other"]], spread(c, study.digits, "+"), c["reading"]]
        for c in found["comparisons"]
    ]
    if not rows:
        return []
    return [
        "## AnyFlow and the best of the others",
        "",
        f"AnyFlow's {study.word} less that of the method on the same backbone which has the least at that number of "
        f"steps, seed by seed. A difference counts where its {SURE:.0%} interval is beside 0. The best of "
        "several is chosen after the fact, which favours it.",
        "",
        *table(["", "steps", "best other", "difference", "AnyFlow is"], rows),
    ]


def costs(found: Found, note: str) -> list[str]:
    """note: what else a call is."""
    titles = titles_of(found)
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
        f"Calls of a network on one sample: with or without a graph one, with a tangent two{note}. The stages keep "
        "their proportions, so a method's iterations follow from its calls; these are counted in a dry run and round "
        "to whole iterations. Seconds of one processor, of training alone; other work ran beside it.",
        "",
        *table(["method", "iterations", "student", "teacher", "critic", "seconds", "of AnyFlow's"], rows),
    ]


def rates(study: Study, found: Found) -> list[str]:
    titles = titles_of(found)
    factors = sorted({*found["settings"]["factors"], *(t["factor"] for one in found["sweep"] for t in one["trials"])})
    rows = []
    for one in found["sweep"]:
        at = {trial["factor"]: trial for trial in one["trials"]}
        edge = " (the last tried)" if at and one["picked"] in (min(at), max(at)) else ""
        picked = "–" if one["picked"] is None else f"{one['picked']:.3g}{edge}"
        rows.append([titles[one["method"]], *(_trial(study, at.get(factor)) for factor in factors), picked])
    return [
        "## The learning rates",
        "",
        "Every method's own rates, those of all its stages and networks at once, times each factor: one seed that no "
        f"result has, {found['settings']['sweep']:.0%} of the calls, {study.word} at {FEW} steps with the method's "
        "sampler. The least is taken. Where it is that of the last factor on one side, another beyond is tried, "
        f"{found['settings']['more']} at most.",
        "",
        *table(["method", *(f"× {f:.3g}" for f in factors), "taken"], rows),
    ]


def _trial(study: Study, one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    return "diverged" if one[study.primary] is None else number(one[study.primary], study.digits)


def where(found: Found, caveat: str) -> list[str]:
    c = found["context"]
    packages = ", ".join(f"{k} {v}" for k, v in c["packages"].items() if v != "not installed")
    on = f"{c['gpu']}, which several runs shared; " if c.get("gpu") else ""
    mixed = "" if len(c["code"]) < 2 else f" The results come from {len(c['code'])} states of the code."
    return [
        "## Where",
        "",
        f"{on}{c['processor']}, one thread a run; Python {c['python']}, {packages}.{mixed}",
        "",
        caveat,
    ]


def text_of(parts: Sequence[Sequence[str]]) -> str:
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"
