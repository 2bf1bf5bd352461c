"""Stopping a run between two iterations."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from attrs import define, field
from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@define
class Interrupt:
    """While entered, the first Ctrl-C or SIGTERM only sets `asked`; the second does what it always did.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    asked: bool = field(default=False, init=False)
    _before: dict[int, Any] = field(factory=dict, init=False)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        tqdm.write("stopping after this iteration; once more stops at once", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
