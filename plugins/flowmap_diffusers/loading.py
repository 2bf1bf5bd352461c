"""Tensors of files, read when they are cut, and parts of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .folder import downloaded, files


def stored(path: str, part: str = "transformer") -> dict[str, Any]:
    """Every tensor of the transformer in a pipeline's directory or hub id. part: its name there."""
    folder = Path(path)
    if not (folder / part).is_dir():
        folder = downloaded(path, allow_patterns=[f"{part}/*"])
    if not (weights := files(folder, part)):
        raise ValueError(f"{folder}: its {part} has no safetensors, which several processes could share")
    return slices(weights)


def slices(weights: Sequence[Path]) -> dict[str, Any]:
    """Every tensor of these files, as a slice that is read when it is cut."""
    from safetensors import safe_open

    opened = [safe_open(file, framework="pt") for file in weights]
    return {name: file.get_slice(name) for file in opened for name in file.keys()}  # noqa: SIM118, not a dict


@contextmanager
def no_bar() -> Iterator[None]:
    """Without the bar over the tensors of a file: the run has one, and downloads have theirs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
