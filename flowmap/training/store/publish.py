"""Directories that are there whole or not at all: written under another name, synchronised, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..faults import reach


@contextmanager
def whole(final: Path) -> Iterator[Path]:
    """A directory to write into, which takes the place of `final` once the block is through.

    A process that is killed before leaves what was at `final`, and a `.tmp-*` beside it that nothing loads and the
    next call removes; an error in the block removes it at once.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".tmp-{final.name}-*"):
        if left.name.endswith("-old") and not final.exists():  # killed between the two renames
            left.rename(final)
        else:
            shutil.rmtree(left)
    partial = final.with_name(f".tmp-{final.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        yield partial
        reach("publish.before")
        if final.exists():
            final.rename(partial.with_name(f"{partial.name}-old"))
            reach("publish.between")
        settle(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    reach("publish.after")
    for left in final.parent.glob(f".tmp-{final.name}-*"):
        shutil.rmtree(left)


def settle(partial: Path, final: Path) -> None:
    """Synchronise every file and directory of `partial`, rename it, synchronise where it stands."""
    for path in (*partial.rglob("*"), partial):
        _fsync(path)
    partial.rename(final)
    _fsync(final.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
