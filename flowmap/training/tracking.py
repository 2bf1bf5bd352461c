"""Records that go elsewhere too, to services that may be slow or away: training never waits for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from attrs import define, field

MOST = 1000  # records that wait for a tracker; more are left out
STRIKES = 3  # errors in a row after which it is asked no more
START = 5.0  # seconds that the start of a run waits for one, to hear whether a package is missing
NOTHING: Mapping[str, Path] = {}
PATIENCE = 10.0  # seconds that the end of a run waits for a tracker

Record: TypeAlias = tuple[int, int, Mapping[str, float], Mapping[str, Path]]


class Tracker(Protocol):
    """Takes records, on a thread of its own. `metrics.jsonl` has them all whatever becomes of it."""

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        """A record. One that raises three times in a row gets no more."""

    def close(self) -> None:
        """There are no more."""


@runtime_checkable
class ShowsPictures(Protocol):
    """A tracker that takes previews, too, on the same thread."""

    def show(self, stage: int, iteration: int, pictures: Mapping[str, Path]) -> None:
        """Previews, and the curve of quality at the end: files by name, .png, .mp4 or .txt (prompts, one a line). Of
        errors the same holds as of `Tracker.log`."""


class TrackerError(Exception):
    """A package that a tracker needs is not installed."""


@define
class Tracked:
    """A tracker behind a queue: made, fed and closed on its own thread; what does not fit into the queue is counted.

    note: takes what there is to say, from that thread too.
    """

    name: str
    make: Callable[[Path], Tracker]
    path: Path
    note: Callable[[str], object]
    left_out: int = field(default=0, init=False)
    _queue: queue.Queue[Record] = field(factory=lambda: queue.Queue(MOST), init=False)
    _thread: threading.Thread = field(init=False)
    _off: bool = field(default=False, init=False)
    _made: threading.Event = field(factory=threading.Event, init=False)
    _missing: ImportError | None = field(default=None, init=False)
    _leaving: threading.Event = field(factory=threading.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name=f"flowmap-{self.name}", daemon=True)
        self._thread.start()
        self._made.wait(START)
        if self._missing is not None:
            raise TrackerError(f"tracker {self.name!r} cannot be used here: {self._missing}")

    def put(
        self, stage: int, iteration: int, values: Mapping[str, float], pictures: Mapping[str, Path] = NOTHING
    ) -> None:
        """Returns at once."""
        if self._off:
            self.left_out += 1
            return
        try:
            self._queue.put_nowait((stage, iteration, dict(values), dict(pictures)))
        except queue.Full:
            self.left_out += 1
            if self.left_out == 1:
                self.note(f"tracker {self.name!r} does not keep up: records are left out (metrics.jsonl has them all)")

    def close(self) -> None:
        """Wait for it, not for ever."""
        self._leaving.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self.note(f"tracker {self.name!r} did not finish within {PATIENCE:g} seconds, and is left behind")
        if left := self.left_out + self._queue.qsize():
            self.note(f"tracker {self.name!r} has not had {left} records; metrics.jsonl has them all")

    def _work(self) -> None:
        try:
            tracker = self.make(self.path)
        except Exception as error:
            self._missing = error if isinstance(error, ImportError) else None
            self._give_up(error)
            self._made.set()
            return
        self._made.set()
        failures = 0
        while not (self._leaving.is_set() and self._queue.empty()):
            try:
                record = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            stage, iteration, values, pictures = record
            try:
                if values or not pictures:
                    tracker.log(stage, iteration, values)
                if pictures and isinstance(tracker, ShowsPictures):
                    tracker.show(stage, iteration, pictures)
                failures = 0
            except Exception as error:
                self.left_out += 1
                if (failures := failures + 1) >= STRIKES:
                    self._give_up(error)
                    break
        try:
            tracker.close()
        except Exception as error:
            self.note(f"tracker {self.name!r} failed as it was closed: {type(error).__name__}: {error}")

    def _give_up(self, error: Exception) -> None:
        self._off = True
        if self._missing is None:
            self.note(f"tracker {self.name!r} is switched off: {type(error).__name__}: {error}")
