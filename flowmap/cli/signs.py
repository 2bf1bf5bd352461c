"""Signs of life on the error stream, for what takes a while: what is being done, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from ..doing import SOON, heard


@contextmanager
def lines() -> Iterator[None]:
    """A line for every step of what is done while entered."""

    def show(what: str, done: int, total: int | None) -> None:
        if done == 0:
            print(f"flowmap: {what}", file=sys.stderr, flush=True)

    with heard(show):
        yield


@contextmanager
def told_as_it_goes(what: str) -> Iterator[None]:
    """`what`, once that takes long enough to be noticed."""
    waits = Timer(SOON, lambda: print(f"flowmap: {what}", file=sys.stderr, flush=True))
    waits.daemon = True
    waits.start()
    try:
        yield
    finally:
        waits.cancel()
