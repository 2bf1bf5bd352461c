"""The progress bar of a run: iterations of a stage, and its losses beside them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from .store.status import NONFINITE


class Progress:
    """speaks: whether there is a bar; one process of a job has it."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self._bar: Any = None

    def stage(self, number: int, name: str, first: int, steps: int) -> None:
        """A new bar, in place of the one of the stage before."""
        self.close()
        often = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log file gets few lines
        self._bar = tqdm(
            total=steps,
            initial=first,
            desc=f"stage {number} {name}",
            mininterval=often,
            dynamic_ncols=True,
            disable=not self.speaks,
        )

    def step(self) -> None:
        self._bar.update()

    def show(self, logs: Mapping[str, float]) -> None:
        """Losses, and the shares of samples that were dropped, where there are some."""
        said = {k.rpartition("/")[2]: f"{v:.3f}" for k, v in logs.items() if "loss" in k or "dmd/gradient" in k}
        said |= {f"{k.rpartition('/')[2]} not finite": f"{100 * v:.2g}%" for k, v in logs.items() if nonfinite(k)}
        self._bar.set_postfix(said, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def nonfinite(name: str) -> bool:
    """Whether a mean of the log is a share of dropped samples."""
    return f"/{NONFINITE}/" in name
