"""R21: a long run. After the first hundred iterations memory, threads, open files and what Python holds stay flat."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import define, field
from torch import Tensor, nn

from flowmap import AdamW, Ema, ModuleSpec, Recipe, Stage, TensorData, distill, hookimpl
from flowmap.data.prefetch import Prefetch
from flowmap.derivative import CentralDifference
from flowmap.methods.meanflow import meanflow
from flowmap.plugins import manager

pytestmark = pytest.mark.row("R21")
STEPS, WARM = 1500, 500
GROWTH = 8 * 2**20  # bytes of resident memory: what caches and the allocator may take; a tensor a step would be more


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(2, 2)
        self.register_buffer("ballast", torch.zeros(4000))  # 16 kB: kept once a step they are 16 MB

    def forward(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return self.layer(z) * (1 + t - r)[:, None]


@define
class Meter:
    """Memory, threads, files and objects, every 100 iterations."""

    found: dict[int, tuple[int, int, int, int]] = field(factory=dict)
    leak: list[Tensor] | None = None

    @hookimpl
    def flowmap_step_end(self, trainer: Any, iteration: int) -> None:
        if self.leak is not None:
            # as if 800 kB a step were kept: more than the allocator of a process with a past has to give again
            self.leak += [torch.ones(200_000) for _ in range(10)]
        if iteration % 100 == 0:
            gc.collect()
            tensors = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
            files = len(os.listdir("/proc/self/fd"))
            self.found[iteration] = resident(), threading.active_count(), files, tensors

    def least(self, iteration: int) -> tuple[int, ...]:
        """Of three times from there on: while a checkpoint is written there are a thread and a file more."""
        return tuple(map(min, *(self.found[iteration + later] for later in (0, 100, 200))))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(out: Path, meter: Meter, steps: int) -> None:
    method = meanflow(drop=0.0, derivative=CentralDifference())
    stage = Stage(method, steps, batch=2, optimizer=AdamW(lr=1e-4), ema=Ema(0.99, start=0))
    batches = Prefetch(TensorData(torch.arange(32.0).reshape(16, 2)), workers=2)
    recipe = Recipe(ModuleSpec(Net(), time=None), (stage,))
    # a save every two seconds
    distill(recipe, batches, out=out, save_minutes=1 / 30, device="cpu", pm=manager(meter, entry_points=False))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_nothing_grows(tmp_path: Path) -> None:
    meter = Meter()
    train(tmp_path, meter, STEPS)
    warm, end = meter.least(WARM), meter.least(STEPS - 300)
    assert end[0] - warm[0] < GROWTH, meter.found
    assert end[1:3] == warm[1:3], meter.found
    assert end[3] <= warm[3] + 20, meter.found
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 3


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_the_meter_sees_what_grows(tmp_path: Path) -> None:
    meter = Meter(leak=[])
    train(tmp_path, meter, 701)
    assert meter.found[700][3] > meter.found[WARM][3] + 20
    assert meter.found[700][0] - meter.found[WARM][0] > GROWTH
