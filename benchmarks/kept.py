"""The finished jobs of a benchmark in one committed file, so that another machine goes on where this one stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from flowmap.atomic import write_text

from .jobs import write


def pack(folder: Path, kinds: Iterable[str], path: Path) -> None:
    """Write every result under `folder`/KIND/*.json into one file, a line each, by its name."""
    found = sorted(file for kind in kinds for file in (folder / kind).glob("*.json"))
    lines = (f"{json.dumps(_name(file, folder))}: {json.dumps(json.loads(file.read_text()))}" for file in found)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def unpack(path: Path, folder: Path) -> None:
    """Write the results of `pack` back, those that `folder` lacks."""
    for name, result in (json.loads(path.read_text()) if path.is_file() else {}).items():
        if not (folder / name).exists():
            write(folder / name, result)


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()
