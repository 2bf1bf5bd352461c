"""When a run saves, and what becomes of it when that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from .loop import Trainer
from .ranks.agree import anywhere, ranks
from .run import Run
from .store import checkpoint
from .store.checkpoint import SaveError, Weights
from .store.writing import Writing

MINUTES = 5.0
FAILURES = 3  # saves in a row, on which a run ends


@define
class Saves:
    """Checkpoints in `folder`, every `minutes` and at the end of every stage; None keeps none.

    One is written while the training goes on. The next one, the end of a stage and that of the run wait for it; whether
    it failed, on all ranks, is told there, or in the iteration after it did.

    A disk that is full for a while costs nothing but checkpoints: the run goes on, says so and counts. It ends where
    that happens `FAILURES` times in a row, or where nothing would come after to make up for it.
    """

    folder: Path | None
    digest: str
    run: Run
    minutes: float = MINUTES
    newest: Path | None = field(default=None, init=False)
    failed: int = field(default=0, init=False)  # in a row
    lost: int = field(default=0, init=False)  # in all
    _last: float = field(factory=time.monotonic, init=False)
    _writing: Writing | None = field(default=None, init=False)

    def agreed(self, asked: bool) -> tuple[bool, bool]:
        """(stop, save): whether any rank was asked to stop, and whether it is time to save, the same on all ranks.

        What is being written goes on to its next part, if no rank is at work on this one.
        """
        due = self.folder is not None and time.monotonic() - self._last >= 60 * self.minutes
        busy = self._writing is not None and self._writing.busy
        stop, save, busy = anywhere(asked, due, busy)
        if self._writing is not None and not busy:
            self._told(self._writing, self._writing.advance)
        return stop, save

    def save(self, trainer: Trainer, weights: Weights, iteration: int, *, last: bool, wait: bool) -> None:
        """last: of the run, so that what it fails to keep is lost. wait: until it is on the disk."""
        if self.folder is None:
            return
        self.wait()
        self._last = time.monotonic()
        try:
            self._writing = checkpoint.begin(self.folder, trainer, weights, iteration, self.digest)
        except SaveError as error:
            self._failed(error, last)
        if wait:
            self.wait(last=last)

    def wait(self, *, last: bool = False) -> None:
        """Until what is being written is on the disk, or has failed."""
        if self._writing is not None:
            self._told(self._writing, self._writing.finish, last)

    def leave(self) -> None:
        """Wait, where the run ends in an error; other ranks may not be there to do it together."""
        if ranks() == 1:
            with suppress(SaveError):
                self.wait()

    def _told(self, writing: Writing, go: Callable[[], object], last: bool = False) -> None:
        try:
            go()
        except SaveError as error:
            self._writing = None
            self._failed(error, last)
        except BaseException:  # nothing of it is left to wait for
            self._writing = None
            raise
        else:
            if writing.path is not None:
                self.failed, self.newest, self._writing = 0, writing.path, None
                self.run.saved(writing.path)

    def _failed(self, error: SaveError, last: bool) -> None:
        self.failed, self.lost = self.failed + 1, self.lost + 1
        count = f"{self.failed} in a row, {self.lost} in all; {FAILURES} in a row end the run"
        self.run.note(f"SAVE FAILED ({count}): {error}")
        if last or self.failed >= FAILURES:
            why = "the last one of the run" if last else f"{self.failed} in a row"
            after = f"make room in {self.folder}, then go on from the one before"
            raise SaveError(f"{error} ({why}): {after}") from None
