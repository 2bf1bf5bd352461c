"""Signs of life on the error stream, for what takes a while: what is being done, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

SOON = 2.0  # seconds, below which nothing is said


@contextmanager
def counted(total: int, what: str = "sampling") -> Iterator[Callable[[int], object]]:
    """A bar over so many steps, with the time left."""
    from tqdm import tqdm

    often = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log file gets few lines
    with tqdm(total=total, desc=what, unit="step", mininterval=often, dynamic_ncols=True, delay=SOON) as bar:
        yield bar.update


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
