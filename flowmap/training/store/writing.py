"""A save that goes on beside the training: what takes time is done in a thread, what ranks do together is not."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, TypeAlias

from attrs import define, field

from ..ranks.agree import RankError, everywhere

Work: TypeAlias = Callable[[], Any]
Steps: TypeAlias = Generator[Work, list[Any], Path]
"""A save. It yields each rank's part of the work that is next, gets what the parts gave on all ranks, or a `RankError`
where one failed, and returns the checkpoint that it published. Between two parts it may talk to other ranks."""


@define
class Writing:
    """A save on its way; all ranks make the same calls of `advance` and `finish`, and hear there of its failure."""

    _steps: Steps
    path: Path | None = field(default=None, init=False)
    """What was published, once it is."""
    _part: Future[Any] = field(factory=Future, init=False)

    def __attrs_post_init__(self) -> None:
        self._go(lambda: next(self._steps))

    @property
    def busy(self) -> bool:
        """Whether this rank is at work; then `advance` would wait for it."""
        return self.path is None and not self._part.done()

    def advance(self) -> None:
        """On to the next part, once every rank is through with its own; nothing where it is published."""
        if self.path is not None:
            return
        try:
            outcome = everywhere(self._part.result)
        except RankError as error:
            failed = error  # Python forgets the name that it is caught by
            self._go(lambda: self._steps.throw(failed))
        else:
            self._go(lambda: self._steps.send(outcome))

    def finish(self) -> Path:
        """Wait for all of it."""
        while self.path is None:
            self.advance()
        return self.path

    def _go(self, step: Callable[[], Work]) -> None:
        try:
            self._part = _started(step())
        except StopIteration as done:
            self.path = done.value


def _started(work: Work) -> Future[Any]:
    """In a thread that no process waits for when it ends."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="checkpoint", daemon=True).start()
    return future
