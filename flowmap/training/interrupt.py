"""Stopping a run between two iterations."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from attrs import define, field
from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if sys.platform != "win32" else []))


class Preempted(KeyboardInterrupt):
    """A signal ended the run; the same call goes on. `number` is the signal, SIGTERM where another rank had it."""

    def __init__(self, where: str, number: int | None = None) -> None:
        super().__init__(where)
        self.number = number or int(signal.SIGTERM)


@define
class Interrupt:
    """While entered, the first SIGINT, SIGTERM or SIGUSR1 only sets `asked`; a second leaves at once.

    at_once: the first does, with `Preempted`: where there is no iteration to finish. Outside the main thread, where
    Python allows no handlers, it does nothing.
    """

    at_once: bool = False
    asked: bool = field(default=False, init=False)
    number: int | None = field(default=None, init=False)  # of the signal that asked
    _before: dict[int, Any] = field(factory=dict, init=False)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.number = True, number
        for each in SIGNALS:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        if self.at_once:
            raise Preempted("before or after training: nothing was going on that a checkpoint has not", number)
        tqdm.write("stopping after this iteration; once more stops at once", file=sys.stderr)
