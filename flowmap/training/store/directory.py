"""Whether a directory is a run's, or may become one; and what becomes of a run that makes way."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

from . import health, lock, status

SIGNS = (lock.NAME, "recipe.json", status.FILE)
"""With one of these it is a run's, and anything else may lie beside them."""
OURS = frozenset(
    (
        *("env.json", "data.json", "metrics.jsonl", "checkpoints", "student", "teacher"),
        *("evaluation", "plots", "samples", "profile", health.PREVIEWS, health.HEALTH, "index.html"),
    )
)
LOG = re.compile(r"\..*|.*\.(log|out|err)")


def others(path: Path) -> str | None:
    """The name of something in the directory that no run has, where nothing says that a run was ever there."""
    if not path.is_dir() or any((path / name).exists() for name in SIGNS):
        return None
    names = sorted(file.name for file in path.iterdir())
    return next((name for name in names if name not in OURS and not LOG.fullmatch(name)), None)


def aside(path: Path) -> Path | None:
    """Move the run at `path` to `PATH.old-1`, or the first number that is free; None where there is none.

    A `LockError` where it is at work.
    """
    if not path.is_dir() or not any(path.iterdir()):
        return None
    with lock.Lock(path):
        to = next(p for n in count(1) if not (p := path.with_name(f"{path.name}.old-{n}")).exists())
        path.rename(to)
    return to


def older(path: Path, say: Callable[[str], object]) -> None:
    """Move what was judged of a run's student to `curves/before_growing`, as another student takes its place."""
    there = [path / name for name in ("evaluation", "plots", "samples") if (path / name).is_dir()]
    if not there:
        return
    names = (f"before_growing{'' if n == 1 else f'_{n}'}" for n in count(1))
    to = next(p for name in names if not (p := path / "curves" / name).exists())
    to.mkdir(parents=True)
    for one in there:
        one.rename(to / one.name)
    say(f"the evaluation of the student before is in {to} now")
