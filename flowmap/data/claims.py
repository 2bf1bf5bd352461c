"""Work that one process does at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def lock(path: Path) -> Path:
    """Held by who makes `path`."""
    return path.with_name(f".{path.name.removeprefix('.')}.lock")


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether this process, and no other, holds the file `lock`; gone when it lets go, let go when it is killed."""
    while True:
        with lock.open("ab") as file:
            if not _locked(file):
                yield False
                return
            if not _is(lock, file):  # the one before cleared it away between opening and locking
                continue
            try:
                yield True
            finally:
                if _is(lock, file):
                    lock.unlink()
            return


def _is(path: Path, file: BinaryIO) -> bool:
    with suppress(FileNotFoundError):
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    return False


def _locked(file: BinaryIO) -> bool:
    """Whether this process now holds the lock; where there are no locks, it does."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
