"""Runs of a recipe file in a process of its own, of a network of a few weights: what the command line leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
import time

from torch import nn
import torch
from flowmap import AdamW, ModuleSpec, Recipe, Stage, TensorData
from flowmap.methods.meanflow import meanflow
from flowmap.derivative import CentralDifference

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    def forward(self, z, t, r):
        time.sleep(0.005)  # a run without end leaves the machine to those that wait for it
        return self.layer(z) * (1 + t - r)[:, None]

torch.manual_seed(0)
stage = Stage(meanflow(drop=0.0, derivative=CentralDifference()), steps={steps}, batch=2, optimizer=AdamW(lr=1e-2))
RECIPE = Recipe(ModuleSpec(Net(), time=None), (stage,), data=TensorData(torch.arange(8.0).reshape(4, 2)), seed={seed})
"""
FOREVER = 10**6


def write(path: Path, steps: int = FOREVER, seed: int = 0) -> Path:
    path.write_text(RECIPE.format(steps=steps, seed=seed))
    return path


def start(here: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flowmap", *arguments]
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
        env={**os.environ, **quiet, **environment},
    )


def trains(run: Path, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Wait until there are records."""
    deadline = time.monotonic() + seconds
    while not (run / "metrics.jsonl").is_file():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"did not train: {process.communicate()}")
        time.sleep(0.05)


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found
