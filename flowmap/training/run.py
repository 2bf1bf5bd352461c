"""The run directory: what was asked, where it ran, how it goes."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from tqdm import tqdm

from ..recipe import Recipe, describe, digest

PACKAGES = ("flowmap-distill", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


@define
class Run:
    """recipe.json, env.json, status.json, metrics.jsonl under `path`; None keeps nothing."""

    path: Path | None
    every: int = 10  # iterations between records
    _bar: Any = field(default=None, init=False)

    def start(self, recipe: Recipe) -> None:
        write_json(self.path, "recipe.json", {"digest": digest(recipe), **describe(recipe)})
        write_json(self.path, "env.json", environment())
        self.status("running")

    def resumed(self, stage: int, iteration: int) -> None:
        """Drop the records that a resumed run writes again."""
        if self.path is None or not (file := self.path / "metrics.jsonl").is_file():
            return
        records = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [r for r in records if (r["stage"], r["iteration"]) < (stage, iteration)]
        write_text(file, "".join(json.dumps(r) + "\n" for r in kept))

    def status(self, state: str, **more: Any) -> None:
        write_json(self.path, "status.json", {"state": state, "time": time.time(), "pid": os.getpid(), **more})

    def preparing(self) -> None:
        self._bar = tqdm(desc="preparing networks and data", bar_format="{desc}")

    def stage(self, number: int, name: str, first: int, steps: int) -> None:
        self.close()
        often = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log file gets few lines
        self._bar = tqdm(
            total=steps, initial=first, desc=f"stage {number} {name}", mininterval=often, dynamic_ncols=True
        )

    def step(self, number: int, iteration: int, logs: Mapping[str, float] | None) -> None:
        self._bar.update()
        if logs is None:
            return
        shown = {k.rpartition("/")[2]: f"{v:.3f}" for k, v in logs.items() if "loss" in k or "dmd/gradient" in k}
        self._bar.set_postfix(shown, refresh=False)
        if self.path is not None:
            record = {"stage": number, "iteration": iteration, "time": time.time(), **logs}
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({k: v for k, v in record.items() if v == v}) + "\n")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def environment() -> dict[str, Any]:
    """What the run ran on."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "packages": packages,
    }


def write_json(directory: Path | None, name: str, value: Any) -> None:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / name, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
