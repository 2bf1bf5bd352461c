"""What is being done and how far it is, from whoever does it to whoever shows it: a run's bar, a command's lines; and
what it is for, to whoever adds up what it costs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeAlias

SOON = 2.0  # seconds, below which nothing is said

Listener: TypeAlias = Callable[[str, int, int | None], object]
"""(what is done, how much of it, of how much): 0 and None where it is not counted."""

Spending: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Within what it gives, all that is computed is for the part of that name."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_spending: ContextVar[Spending] = ContextVar("spending", default=lambda name: nullcontext())


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """While entered, this thread's `tell` goes to `listener`."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def tell(what: str, done: int = 0, total: int | None = None) -> None:
    """Where nobody listens, nothing."""
    if (listener := _listener.get()) is not None:
        listener(what, done, total)


@contextmanager
def adding(spending: Spending) -> Iterator[None]:
    """While entered, the parts that `spent_on` names in this thread are those of `spending`."""
    before = _spending.set(spending)
    try:
        yield
    finally:
        _spending.reset(before)


def spent_on(name: str) -> AbstractContextManager[object]:
    """Within it, calls of networks are for `name`, a row of a plan; where nobody adds up, nothing."""
    return _spending.get()(name)


@contextmanager
def part_of(before: int, total: int) -> Iterator[None]:
    """While entered, what is counted is counted as a part of more: `before` of the `total` were done already."""
    if (outer := _listener.get()) is None:
        yield
        return

    def listener(what: str, done: int, of: int | None) -> None:
        outer(what, done, None) if of is None else outer(what, before + done, total)

    with heard(listener):
        yield


@contextmanager
def counted(total: int, what: str = "sampling") -> Iterator[Callable[[int], object]]:
    """Gives what is to be called with every number of steps done: for who listens or else, in a terminal, for a bar."""
    if _listener.get() is None:
        from tqdm import tqdm

        often = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log file gets few lines
        with tqdm(total=total, desc=what, unit="step", mininterval=often, dynamic_ncols=True, delay=SOON) as bar:
            yield bar.update
        return
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        tell(what, done, total)

    tell(what, 0, total)
    yield tick
