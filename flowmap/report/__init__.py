"""One page a run, in one file that fetches nothing: what it made, how sound that is, how it went, what it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from pathlib import Path

from ..atomic import write_text
from ..training.store import health
from ..validators import counted
from . import player, sections
from .facts import Facts

NAME = "index.html"
HERE = Path(__file__).parent
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><style>
{css}</style></head><body>
{body}
<script>
{script}</script></body></html>
"""
STATES = {"finished": "good", "failed": "bad"}


def write(run: Path, out: Path | None = None) -> Path:
    """The page of the run directory `run`, by default `index.html` in it; a `StatusError` where it is none."""
    facts = Facts.read(run)
    body = "\n".join([_head(facts), player.section(run), *(part(facts) for part in PARTS)])
    css, script = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    page = PAGE.format(title=escape(f"{facts.name}: flowmap"), css=css, body=body, script=script)
    write_text(out or run / NAME, page)
    return out or run / NAME


def quietly(run: Path, say: Callable[[str], object]) -> None:
    """`write` at the end of a run, which is done whatever becomes of its page; `say` takes what went wrong."""
    try:
        write(run)
    except Exception as error:
        say(f"{run / NAME} was not written: {type(error).__name__}: {error}")


PARTS = (sections.quality, sections.health, sections.course, sections.losses, sections.cost, sections.recipe)


def _head(facts: Facts) -> str:
    now, line = facts.status, health.line(facts.path)
    total = sum(int(stage["steps"]) for stage in facts.stages)
    done = sum(facts.done(k) for k in range(len(facts.stages)))
    told = {
        "state": f'<span class="{STATES.get(now.state, "")}">{now.state}</span>',
        "iterations": f"{done} of {total}",
        "stages": escape(", ".join(facts.method(k) for k in range(len(facts.stages)))),
        "started": escape(now.started.replace("T", " ")),
        "this page": time.strftime("%Y-%m-%d %H:%M"),
    }
    cells = "".join(f"<div><b>{name}</b>{text}</div>" for name, text in told.items())
    notes = [f'<p class="bad">{escape(now.reason)}</p>'] if now.reason else []
    if 0 < total < sections.SHORT:
        what = counted(total, "iteration")
        trial = f"A trial of {what}: it shows that all of it works, and its samples and numbers mean nothing."
        notes.append(f'<p class="bad">{trial}</p>')
    if line is not None:
        kind = "good" if line.startswith("no alarm") else "bad"
        notes.append(f'<p>Health: <span class="{kind}">{escape(line)}</span></p>')
    return f'<h1>{escape(facts.name)}</h1><div class="facts">{cells}</div>{"".join(notes)}'
