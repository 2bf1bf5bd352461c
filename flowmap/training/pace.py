"""How fast a run goes, what memory it takes, and where its time is spent: of this machine, and never of the result."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from attrs import define, field

SPEED, MEMORY = "samples_per_second", "peak_gib"
OPERATIONS, SHARE = "tflops_per_device", "share_of_bound"

BOUNDS = {  # more of a name before less of it
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H200 NVL": 835.0, "H100": 989.0, "H200": 989.0, "H800": 989.0,
    "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0, "B200": 2250.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip
"""By a word of a GPU's name, as published: 10^12 operations a second in bfloat16, dense."""


def bound(name: str | None) -> float | None:
    """Of a GPU by its name; None of one that is not listed, and of a CPU."""
    words = (name or "").replace("-", " ").split()
    for known, found in BOUNDS.items():
        if all(word in words for word in known.split()):
            return found
    return None


@define
class Pace:
    """Of one stage, whose global batch is `batch`; None where it is not known.

    operations: of an iteration, on each device, recomputed ones included, by its plan. bound: of a device, 10^12 a
    second.
    """

    batch: int | None = None
    operations: float | None = None
    bound: float | None = None
    _since: float = field(factory=lambda: time.monotonic(), init=False)
    _steps: int = field(default=0, init=False)

    def step(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Since the last look: samples a second, of the whole batch; 10^12 operations a second on a device, and the
        share of its bound that this is. The most memory so far, of this process: on a GPU what torch has taken."""
        now = time.monotonic()
        found = {MEMORY: peak() / 2**30}
        if self.batch is not None and now > self._since:
            found[SPEED] = self.batch * self._steps / (now - self._since)
        if self.operations is not None and now > self._since:
            found[OPERATIONS] = self.operations * self._steps / (now - self._since) / 1e12
            found |= {} if self.bound is None else {SHARE: found[OPERATIONS] / self.bound}
        self._since, self._steps = now, 0
        return found


def peak() -> int:
    """Bytes."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


SKIPPED = 2  # iterations, in which much is done for the first time


@define
class Profile:
    """A trace of `steps` iterations after the first few, in `file`: for chrome://tracing, Perfetto or HTA."""

    file: Path
    steps: int
    _running: Any = field(default=None, init=False)

    def start(self) -> None:
        from torch import profiler

        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._running = profiler.profile(
            schedule=profiler.schedule(wait=SKIPPED - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=lambda found: found.export_chrome_trace(str(self.file)),
        )
        self._running.start()

    def step(self) -> None:
        if self._running is not None:
            self._running.step()

    def stop(self) -> None:
        if self._running is not None:
            self._running, running = None, self._running
            running.stop()
