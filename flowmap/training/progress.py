"""The progress bar of a run: one for all of it, with the time left; in a log file a line now and then."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from .forecast import Forecast, clock
from .store.status import NONFINITE

OFTEN, SELDOM = 0.5, 30.0  # seconds between two looks: in a terminal, in a log file
SMOOTHED = 3  # previews, over which the paired error is averaged
WIDTH = 10


class Progress:
    """speaks: whether there is a bar; one process of a job has it."""

    def __init__(self, speaks: bool) -> None:
        self.speaks, self.forecast = speaks, Forecast()
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._began, self._shown = time.monotonic(), 0.0
        self._what, self._beside = "", ""
        self._stage, self._done = "", 0
        self._begun: set[str] = set()
        self._paired: deque[float] = deque(maxlen=SMOOTHED)

    def stage(self, number: int, stages: int, name: str, first: int, steps: int) -> None:
        """A stage begins, or goes on after `first` iterations."""
        self.forecast.over(*(part(k) for k in range(number)))
        self.forecast.expect(part(number), steps, "training")
        self.forecast.resumed(part(number), first)
        self._stage, self._done = f"stage {number} of {stages} {name}", first
        self._number, self._steps = number, steps
        self._paired.clear()
        self._beside = ""
        self._now(f"{self._stage} {first}/{steps}", at_once=True)

    def step(self) -> None:
        self._done += 1
        self.forecast.at(part(self._number), self._done)
        self._now(f"{self._stage} {self._done}/{self._steps}")

    def doing(self, what: str, done: int, total: int | None) -> None:
        """Something beside the iterations, as `flowmap.doing` tells it."""
        if total is None:
            self._now(what, at_once=True)
            return
        known = self.forecast.parts.get(what)
        self.forecast.expect(what, total, "other" if known is None else known.kind)
        if what in self._begun:
            self.forecast.at(what, done)
        else:  # what is done of it now was done before
            self.forecast.resumed(what, done)
            self._begun.add(what)
        self._now(f"{what} {done}/{total}", at_once=done == 0)

    def paired(self, error: float) -> None:
        """The student's distance from where the teacher's ODE takes the same noise, by a preview."""
        self._paired.append(error)

    def show(self, logs: Mapping[str, float]) -> None:
        """Losses, rates, gradient norms, the paired error, and the shares of samples that were dropped, if any were."""
        said = {k.rpartition("/")[2]: f"{v:.3f}" for k, v in logs.items() if "loss" in k or "dmd/gradient" in k}
        for name, short, form in (("lr", "lr", ".1e"), ("gradient_norm", "|g|", ".2g")):
            of = {k.partition("/")[0]: v for k, v in logs.items() if k.rpartition("/")[2] == name}
            said |= {short if len(of) == 1 else f"{role} {short}": f"{v:{form}}" for role, v in of.items()}
        if self._paired:
            said["paired"] = f"{sum(self._paired) / len(self._paired):.2f}"
        said |= {f"{k.rpartition('/')[2]} not finite": f"{100 * v:.2g}%" for k, v in logs.items() if nonfinite(k)}
        self._beside = ", ".join(f"{k}={v}" for k, v in said.items())

    def close(self, *, failed: bool = False) -> None:
        """failed: why, the next line will say."""
        if self.speaks and self._shown and not failed:
            self._show()
        if self._bar is not None:
            self._bar.close()
        self._bar, self._shown = None, 0.0

    def _now(self, what: str, *, at_once: bool = False) -> None:
        """at_once: something else begins."""
        begins, self._what = at_once, what
        if self.speaks and (begins or time.monotonic() - self._shown > (OFTEN if self._terminal else SELDOM)):
            self._shown = time.monotonic()
            self._show()

    def _show(self) -> None:
        text, share = self.line()
        if not self._terminal:
            print(f"flowmap: {share:.0%}, {text}", file=sys.stderr, flush=True)
            return
        if self._bar is None:
            form = f"{{percentage:3.0f}}%|{{bar:{WIDTH}}}| {{desc}}"
            self._bar = tqdm(total=1.0, dynamic_ncols=True, bar_format=form)
        self._bar.n = share
        self._bar.set_description_str(text)  # and shows it

    def line(self) -> tuple[str, float]:
        """What it says, and the share of the run that is over: by time, of the parts whose pace is known."""
        left, elapsed = self.forecast.left(), time.monotonic() - self._began
        share = elapsed / (elapsed + left.seconds) if elapsed + left.seconds else 0.0
        share *= 1 - len(left.uncounted) / max(1, len(self.forecast.parts))
        if any(part.left for part in self.forecast.parts.values()):
            share = min(share, 0.99)
        known = f", {left.told()}" if left.seconds or left.uncounted else ""
        return " | ".join(filter(None, (f"{clock(elapsed)}{known}", self._what, self._beside))), share


def part(stage: int) -> str:
    """A stage's name in the forecast."""
    return f"stage {stage}"


def nonfinite(name: str) -> bool:
    """Whether a mean of the log is a share of dropped samples."""
    return f"/{NONFINITE}/" in name
