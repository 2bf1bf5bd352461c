"""When a run saves, and what becomes of it when that fails."""

from __future__ import annotations

import time
from pathlib import Path

from attrs import define, field

from .loop import Trainer
from .ranks.agree import anywhere
from .run import Run
from .store import checkpoint
from .store.checkpoint import SaveError, Weights

MINUTES = 5.0
FAILURES = 3  # saves in a row, on which a run ends


@define
class Saves:
    """Checkpoints in `folder`, every `minutes` and at the end of every stage; None keeps none.

    A disk that is full for a while costs nothing but checkpoints: the run goes on, says so and counts. It ends where
    that happens `FAILURES` times in a row, or where nothing would come after to make up for it. Saves are synchronous:
    when one returns, it is on the disk, or has failed on all ranks.
    """

    folder: Path | None
    digest: str
    run: Run
    minutes: float = MINUTES
    newest: Path | None = field(default=None, init=False)
    failed: int = field(default=0, init=False)  # in a row
    lost: int = field(default=0, init=False)  # in all
    _last: float = field(factory=time.monotonic, init=False)

    def agreed(self, asked: bool) -> tuple[bool, bool]:
        """(stop, save): whether any rank was asked to stop, and whether it is time to save, the same on all ranks."""
        due = self.folder is not None and time.monotonic() - self._last >= 60 * self.minutes
        stop, save = anywhere(asked, due)
        return stop, save

    def save(self, trainer: Trainer, weights: Weights, iteration: int, *, last: bool) -> None:
        """last: of the run, so that what it fails to keep is lost."""
        if self.folder is None:
            return
        try:
            path = checkpoint.save(self.folder, trainer, weights, iteration, self.digest)
        except SaveError as error:
            self.failed, self.lost = self.failed + 1, self.lost + 1
            count = f"{self.failed} in a row, {self.lost} in all; {FAILURES} in a row end the run"
            self.run.note(f"SAVE FAILED ({count}): {error}")
            if last or self.failed >= FAILURES:
                why = "the last one of the run" if last else f"{self.failed} in a row"
                after = f"make room in {self.folder}, then go on from the one before"
                raise SaveError(f"{error} ({why}): {after}") from None
        else:
            self.failed, self.newest = 0, path
            self.run.saved(path)
        self._last = time.monotonic()
