"""How long a run's stages were to be, each time that it was started: `steps` may grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

KEY = "steps_before"
"""Of `recipe.json`: those that the run was started with before."""

Steps: TypeAlias = tuple[int, ...]
"""Of every stage."""


def recorded(run: Path) -> list[Steps]:
    """All that the run in this directory was ever started with; none where nothing says it."""
    try:
        said = json.loads((run / "recipe.json").read_text())
        now = tuple(int(stage["steps"]) for stage in said["stages"])
        return [*dict.fromkeys((*(tuple(map(int, one)) for one in said.get(KEY, [])), now))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
