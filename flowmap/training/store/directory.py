"""Whether a directory is a run's, or may become one."""

from __future__ import annotations

import re
from pathlib import Path

from . import lock, status

SIGNS = (lock.NAME, "recipe.json", status.FILE)
"""With one of these it is a run's, and anything else may lie beside them."""
OURS = frozenset(
    (
        *("env.json", "data.json", "metrics.jsonl", "checkpoints", "student", "teacher"),
        *("evaluation", "plots", "samples", "profile"),
    )
)
LOG = re.compile(r"\..*|.*\.(log|out|err)")


def others(path: Path) -> str | None:
    """The name of something in the directory that no run has, where nothing says that a run was ever there."""
    if not path.is_dir() or any((path / name).exists() for name in SIGNS):
        return None
    names = sorted(file.name for file in path.iterdir())
    return next((name for name in names if name not in OURS and not LOG.fullmatch(name)), None)
