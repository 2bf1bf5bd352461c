"""`torch-export`: the traced program itself, a `.pt2` that torch loads alone; on any machine that torch runs on."""

from __future__ import annotations

from pathlib import Path

import torch
from attrs import frozen

from .backend import Available, Job, quiet, versions
from .graph import Call
from .manifest import Built, Manifest
from .spec import Asked


@frozen
class TorchExport:
    exact: tuple[str, ...] = ()
    builds_ahead: bool = False
    bound: bool = False

    def available(self) -> Available:
        return Available(True, versions=versions())

    def check(self, asked: Asked) -> None:
        asked.known("torch-export", ())

    def build(self, job: Job) -> str:
        file = f"{job.graph.name}.pt2"
        with quiet():
            torch.export.save(job.program, job.folder / file)
        return file

    def compare(self, file: Path, built: Built, manifest: Manifest) -> tuple[Call, str]:
        return self.load(file, built, manifest), "the exported program"

    def load(self, file: Path, built: Built, manifest: Manifest) -> Call:
        with quiet():
            module = torch.export.load(file).module()
        return lambda *args: module(*args)
