"""Checkpoints: trained tensors, averages, optimisers and counters; safetensors and JSON, never a pickle.

    checkpoints/step_00_00000120/   stage and iteration; renamed into place once complete
        state.safetensors           role/name, ema/role/name, optim/role/moment/name
        train_state.json            stage, iteration, whether the stage ends there, running means, skip counters,
                                    digest of the recipe
        MANIFEST.json               size and sha256 of each file; written last

A checkpoint is verified before any live tensor changes; one that is damaged is renamed `*.corrupt` and the next older
one is taken; if there are some and none is whole, that is an error and not a fresh start. Kept are the two newest, and
the one at the end of every stage, for good: it says what the next stage started from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from .._types import Role
    from .loop import Trainer

KEEP = 2
Weights = Mapping["Role", Mapping[str, nn.Parameter]]


class CheckpointError(Exception):
    """There are checkpoints, and none can be used."""


def save(directory: Path, trainer: Trainer, weights: Weights, iteration: int, digest: str) -> Path:
    """Publish the state after `iteration` iterations of the trainer's stage; publishing it again changes nothing."""
    final = directory / f"step_{trainer.number:02d}_{iteration:08d}"
    if final.exists():
        return final
    partial = directory / f".tmp-{final.name}-{uuid.uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    save_file(_tensors(trainer, weights), partial / "state.safetensors")
    state = {
        "stage": trainer.number,
        "iteration": iteration,
        "end": iteration == trainer.stage.steps,
        "digest": digest,
        "means": trainer.shared.state(),
        "skipped": dict(trainer.skipped),
    }
    (partial / "train_state.json").write_text(json.dumps(state))
    manifest = {name: _sum(partial / name) for name in ("state.safetensors", "train_state.json")}
    (partial / "MANIFEST.json").write_text(json.dumps(manifest))
    for file in partial.iterdir():
        _fsync(file)
    partial.replace(final)
    _fsync(directory)
    found = _all(directory)
    ends = {_stage(path): path for path in found}  # the newest of a stage that another has followed
    for old in set(found[:-KEEP]) - set(ends.values()):
        shutil.rmtree(old)
    return final


def latest(directory: Path, digest: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """State and tensors of the newest whole checkpoint of this recipe; None where there is none at all."""
    found = _all(directory)
    for path in reversed(found):
        if not _whole(path):
            path.rename(path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}.corrupt"))
            continue
        state = json.loads((path / "train_state.json").read_text())
        if state["digest"] != digest:
            raise CheckpointError(
                f"{path} is of another recipe, or of one with other steps: give another directory, or empty this one"
            )
        return state, load_file(path / "state.safetensors")
    if corrupt := list(directory.glob("step_*.corrupt")):  # found just now, or by the run before
        raise CheckpointError(
            f"{directory}: no checkpoint is whole; {len(corrupt)} are kept as *.corrupt: start again with another --out"
        )
    return None


def stage_end(directory: Path, number: int, digest: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and tensors at the end of stage `number`; its result is `restore_weights(tensors, ..., averaged=True)`.

    Nothing is renamed. A stage that has not ended, a damaged checkpoint, and one of another recipe are errors.
    """
    path = next((p for p in reversed(_all(directory)) if _stage(p) == number), None)
    if path is None:
        raise CheckpointError(f"{directory} has no checkpoint of stage {number}")
    if not _whole(path):
        raise CheckpointError(f"{path} is damaged: what stage {number} ended with is lost")
    state = json.loads((path / "train_state.json").read_text())
    if state["digest"] != digest:
        raise CheckpointError(f"{path} is of another recipe, or of one with other steps")
    if not state.get("end", False):
        raise CheckpointError(f"{path} is not the end of stage {number}, which stopped before it")
    return state, load_file(path / "state.safetensors")


@torch.no_grad()
def restore_weights(tensors: Mapping[str, Tensor], weights: Weights, *, averaged: bool = False) -> None:
    """averaged: as they are once the stage has ended, the averages where there are some."""
    for role, trained in weights.items():
        for name, p in trained.items():
            stored = tensors[f"{role}/{name}"]
            p.copy_(tensors.get(f"ema/{role}/{name}", stored) if averaged else stored)


@torch.no_grad()
def restore_trainer(state: Mapping[str, Any], tensors: Mapping[str, Tensor], trainer: Trainer) -> None:
    trainer.shared.load(state["means"])
    trainer.skipped = dict(state["skipped"])
    for role, average in trainer.averages.items():
        for name, tensor in average.tensors.items():
            tensor.copy_(tensors[f"ema/{role}/{name}"])
    for role, optimizer in trainer.optimizers.items():
        for name, p in trainer.trained[role].items():
            prefix = f"optim/{role}/"
            moments = {
                key.removeprefix(prefix).partition("/")[0]: value.to(p.device, copy=True)
                for key, value in tensors.items()
                if key.startswith(prefix) and key.removeprefix(prefix).partition("/")[2] == name
            }
            if moments:
                optimizer.state[p] = moments


def _tensors(trainer: Trainer, weights: Weights) -> dict[str, Tensor]:
    tensors = {f"{role}/{name}": p.detach() for role, trained in weights.items() for name, p in trained.items()}
    for role, average in trainer.averages.items():
        tensors |= {f"ema/{role}/{name}": value for name, value in average.tensors.items()}
    for role, optimizer in trainer.optimizers.items():
        for name, p in trainer.trained[role].items():
            tensors |= {f"optim/{role}/{moment}/{name}": value for moment, value in optimizer.state[p].items()}
    return {name: value.contiguous().clone() for name, value in tensors.items()}


def _all(directory: Path) -> list[Path]:
    """Oldest first; what was never finished or is damaged does not count."""
    return sorted(p for p in directory.glob("step_*") if p.is_dir() and p.suffix != ".corrupt")


def _stage(path: Path) -> int:
    return int(path.name.split("_")[1])


def _whole(path: Path) -> bool:
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text())
        return bool(manifest) and all(_sum(path / name) == expected for name, expected in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
