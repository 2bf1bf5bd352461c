"""Small files, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(directory: Path | None, name: str, value: Any) -> None:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / name, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
