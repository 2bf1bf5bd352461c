"""health.jsonl: a line a preview; the last of them in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...validators import counted
from .metrics import read

HEALTH, PREVIEWS, ALBUM = "health.jsonl", "previews", "album.json"
"""In a run's directory: the records, the folder of a folder a preview, and in the last of a stage the list of clips."""


def last(run: Path) -> Mapping[str, Any] | None:
    """The newest record."""
    file = run / HEALTH
    found = read(file) if file.is_file() else []
    return found[-1] if found else None


def line(run: Path) -> str | None:
    """How sound the newest samples are; None where nothing was compared."""
    if (record := last(run)) is None or not record.get("values"):
        return None
    when = f"after {counted(record['done'], 'iteration')} of stage {record['stage']}, at {record['judged']} steps"
    alarms = list(record.get("alarms", {}).values())
    if not alarms:
        return f"no alarm {when}"
    return f"{len(alarms)} alarm{'s' * (len(alarms) > 1)} {when}: {'; '.join(alarms)}"
