"""Files and directories that are there whole or not at all, whatever happens to the process or the machine.

What is new is written under another name, synchronised and renamed; then the directory that holds the name is
synchronised, since a rename lasts only from there on. Everything that a later call reads is written here.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .faults import reach


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The file `path`, in a directory that is made if need be. For one process at a time."""
    folder(path.parent)
    begun = partial(path)
    with begun.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    begun.replace(path)
    _sync(path.parent)


def partial(path: Path) -> Path:
    """The file `path` while it is written."""
    return path.with_name(f".{path.name.removeprefix('.')}.partial")


def folder(path: Path) -> None:
    """The directory `path`, made if need be with those above it, all of them to last."""
    new = [made for made in (path, *path.parents) if not made.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in new:
        _sync(made.parent)


@contextmanager
def whole(final: Path) -> Iterator[Path]:
    """A directory to write into, which takes the place of `final` once the block is through.

    A process that is killed before leaves what was at `final`, and a `.tmp-*` beside it that nothing loads and the
    next call removes; an error in the block removes it at once.
    """
    folder(final.parent)
    for left in final.parent.glob(f".tmp-{final.name}-*"):
        if left.name.endswith("-old") and not final.exists():  # killed between the two renames
            left.rename(final)
        else:
            shutil.rmtree(left)
    begun = final.with_name(f".tmp-{final.name}-{uuid.uuid4().hex[:8]}")
    begun.mkdir()
    try:
        yield begun
        reach("publish.before")
        if final.exists():
            final.rename(begun.with_name(f"{begun.name}-old"))
            reach("publish.between")
        settle(begun, final)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    reach("publish.after")
    for left in final.parent.glob(f".tmp-{final.name}-*"):
        shutil.rmtree(left)


def settle(begun: Path, final: Path) -> None:
    """Synchronise every file and directory of `begun`, rename it, synchronise where it stands."""
    for path in (*begun.rglob("*"), begun):
        _sync(path)
    begun.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
