"""Checkpoints: trained tensors, averages, optimisers and counters; safetensors and JSON, never a pickle.

    checkpoints/step_00_00000120/   stage and iteration; renamed into place once complete
        state/*.safetensors         role/name, ema/role/name, optim/role/moment/name; one file a rank
        train_state.json            stage, iteration, whether the stage ends there, the trainer's counters and means
        MANIFEST.json               size and sha256 of each file, shapes, world size, versions, digest of the recipe,
                                    and its own sha256; written last

A checkpoint is verified before any live tensor changes; one that is damaged is renamed `*.corrupt` and the next older
one is taken; if there are some and none is whole, that is an error and not a fresh start. Kept are the two newest, and
the one at the end of every stage, for good: it says what the next stage started from. All ranks agree on every choice;
the directory must be one that all of them see.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn

from ...adamw8bit import CODED
from ...atomic import folder, settle
from ...faults import reach
from ..ranks.agree import RankError, everywhere, on_first, rank, ranks, said
from . import manifest, shards
from .manifest import SCHEMA, Manifest, Sum
from .writing import Steps, Work, Writing

if TYPE_CHECKING:
    from ..._types import Role
    from ..loop import Trainer

KEEP = 2
Weights = Mapping["Role", Mapping[str, nn.Parameter]]


class CheckpointError(Exception):
    """There are checkpoints, and none can be used."""


class OtherRecipeError(CheckpointError):
    """A checkpoint of another recipe."""


class SaveError(Exception):
    """A checkpoint could not be written, on any rank; the ones before are as they were."""


@frozen
class Found:
    """A whole checkpoint. end: its stage is over there. digest: of its recipe. passed: newer ones that were put aside,
    and why."""

    path: Path
    stage: int
    iteration: int
    end: bool
    trainer: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    digest: str
    passed: tuple[str, ...] = ()


def begin(directory: Path, trainer: Trainer, weights: Weights, iteration: int, digest: str) -> Writing:
    """Copy the state after `iteration` iterations of the trainer's stage, and start to publish it.

    What comes before, and how it went, is told by a `SaveError` here or in `Writing`. One at a time.
    """
    return Writing(_saving(directory, trainer, weights, iteration, digest))


def save(directory: Path, trainer: Trainer, weights: Weights, iteration: int, digest: str) -> Path:
    """`begin`, and wait; publishing again what is published changes nothing."""
    return begin(directory, trainer, weights, iteration, digest).finish()


def _saving(directory: Path, trainer: Trainer, weights: Weights, iteration: int, digest: str) -> Steps:
    final = directory / f"step_{trainer.number:02d}_{iteration:08d}"
    reach("save.before")
    try:
        if on_first(final.exists):
            return final
        new = on_first(lambda: _new(directory, final.name))
        try:
            state, tensors = _state(trainer, iteration), _tensors(trainer, weights)
            shapes = {name: tuple(value.shape) for name, value in tensors.items()}
            pieces = shards.copied(tensors)
            sums = yield lambda: _write(new, pieces, state)
            reach("save.after_data")
            pieces.clear()
            merged = {name: each for some in sums for name, each in some.items()}
            on_first(lambda: _seal(new, Manifest(merged, shapes, digest, ranks())))
            reach("save.after_manifest")
            yield _by_first(lambda: settle(new, final))
        except RankError:
            on_first(lambda: shutil.rmtree(new, ignore_errors=True))
            raise
        reach("save.after_rename")
        seen = yield lambda: manifest.damage(final, rank(), ranks())
        if wrong := _united(seen) + on_first(lambda: shards.complaints(final / "state", Manifest.read(final).shapes)):
            on_first(lambda: _put_aside(final))
            raise SaveError(f"{final}, read again, is damaged: {'; '.join(wrong)}")
        yield _by_first(lambda: _purge(directory))
    except RankError as error:
        raise SaveError(f"{final} could not be written: {error}") from None
    return final


def latest(directory: Path, *digests: str) -> Found | None:
    """The newest whole checkpoint, of a recipe of one of these `digests`; None where there is none at all."""
    passed: list[str] = []
    for path in reversed(on_first(lambda: published(directory))):
        _refuse_other_schema(path)
        if wrong := damage(path):
            aside = on_first(partial(_put_aside, path))
            passed.append(f"{path.name} is damaged ({'; '.join(wrong)}): kept as {aside.name}")
            continue
        return _open(path, digests, tuple(passed))
    if corrupt := on_first(lambda: list(directory.glob("step_*.corrupt"))):  # found just now, or by the run before
        raise CheckpointError(
            f"{directory}: no checkpoint is whole; {len(corrupt)} are kept as *.corrupt: start again with another --out"
        )
    return None


def stage_end(directory: Path, number: int, digest: str) -> Found:
    """The end of stage `number`; its result is `restore_weights(found, ..., averaged=True)`.

    Nothing is renamed. A stage that has not ended, a damaged checkpoint, and one of another recipe are errors.
    """
    path = next((p for p in reversed(on_first(lambda: published(directory))) if _stage(p) == number), None)
    if path is None:
        raise CheckpointError(f"{directory} has no checkpoint of stage {number}")
    _refuse_other_schema(path)
    if wrong := damage(path):
        raise CheckpointError(f"{path} is damaged ({'; '.join(wrong)}): what stage {number} ended with is lost")
    found = _open(path, (digest,))
    if not found.end:
        raise CheckpointError(f"{path} is not the end of stage {number}, which stopped before it")
    return found


def restore_weights(found: Found, weights: Weights, *, averaged: bool = False) -> None:
    """averaged: as they are once the stage has ended, the averages where there are some."""
    live: dict[str, Tensor] = {}
    for role, trained in weights.items():
        for name, p in trained.items():
            average = f"ema/{role}/{name}"
            live[average if averaged and average in found.shapes else f"{role}/{name}"] = p
    _read(found, live)


def restore_trainer(found: Found, trainer: Trainer) -> None:
    """Averages, moments of the optimisers, counters."""
    try:
        trainer.restore(found.trainer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{found.path}: its train_state.json makes no sense: {said(error)}") from None
    live: dict[str, Tensor] = {}
    for role, average in trainer.averages.items():
        live |= {f"ema/{role}/{name}": tensor for name, tensor in average.tensors.items()}
    moments: dict[nn.Parameter, dict[str, Tensor]] = {}
    for role in trainer.optimizers:
        for moment in _moments(found, role):
            for name, p in trainer.trained[role].items():
                key = f"optim/{role}/{moment}/{name}"
                if (shape := found.shapes.get(key)) is not None:
                    kind = CODED.get(moment, p.dtype)
                    like = torch.zeros_like(p, dtype=kind) if shape == p.shape else torch.zeros(shape, device=p.device)
                    moments.setdefault(p, {})[moment] = live[key] = like.detach()
    _read(found, live)
    for role, optimizer in trainer.optimizers.items():
        for p in trainer.trained[role].values():
            if p in moments:
                optimizer.state[p] = moments[p]


def published(directory: Path) -> list[Path]:
    """Oldest first; what was never finished or is damaged does not count."""
    return sorted(p for p in directory.glob("step_*") if p.is_dir() and p.suffix != ".corrupt")


def damage(path: Path) -> list[str]:
    """What is wrong with a published checkpoint, the same on every rank, which share the reading; [] if it is whole."""
    return _united(everywhere(lambda: manifest.damage(path, rank(), ranks())))


def _united(some: Iterable[Iterable[str]]) -> list[str]:
    return sorted({each for its in some for each in its})


def _by_first(work: Work) -> Work:
    return work if rank() == 0 else lambda: None


def _state(trainer: Trainer, iteration: int) -> bytes:
    state = {
        "schema": SCHEMA,
        "stage": trainer.number,
        "iteration": iteration,
        "end": iteration == trainer.stage.steps,
        "trainer": trainer.state(),
    }
    return json.dumps(state, indent=1).encode()


def _write(new: Path, pieces: Sequence[shards.Piece], state: bytes) -> dict[str, Sum]:
    """This rank's files, the first's with the counters."""
    written = {f"state/{name}": each for name, each in shards.write(pieces, new / "state", rank()).items()}
    if rank() == 0:
        written["train_state.json"] = manifest.hashed(new / "train_state.json", [state])
    return written


def _seal(new: Path, listed: Manifest) -> None:
    reach("save.manifest")
    listed.write(new)


def _open(path: Path, digests: Sequence[str], passed: tuple[str, ...] = ()) -> Found:
    """A checkpoint that was verified."""
    listed, state = on_first(lambda: (Manifest.read(path), json.loads((path / "train_state.json").read_text())))
    if listed.digest not in digests:
        raise OtherRecipeError(f"{path} is of another recipe: give another directory, or start anew in it (--restart)")
    at = state["stage"], state["iteration"], state["end"]
    return Found(path, *at, state["trainer"], listed.shapes, listed.digest, passed)


def _refuse_other_schema(path: Path) -> None:
    """Newer or older is not damaged: nothing is put aside."""
    if (schema := on_first(lambda: manifest.schema(path))) is not None and schema != SCHEMA:
        since = "a newer flowmap: update this one" if schema > SCHEMA else "an older flowmap: go on with that one"
        raise CheckpointError(f"{path} is of schema {schema}, this version reads {SCHEMA}; it was written by {since}")


def _read(found: Found, live: Mapping[str, Tensor]) -> None:
    for name, tensor in live.items():
        if (stored := found.shapes.get(name)) != tuple(tensor.shape):
            has = "does not have it" if stored is None else f"has {list(stored)}"
            raise CheckpointError(f"{found.path}: {name} must be {list(tensor.shape)}, and the checkpoint {has}")
    if wrong := on_first(lambda: shards.complaints(found.path / "state", found.shapes)):
        raise CheckpointError(f"{found.path} could not be read: {'; '.join(wrong)}")
    try:
        shards.read(live, found.path / "state")
    except shards.ShardError as error:
        raise CheckpointError(f"{found.path} could not be read: {error}") from None


def _tensors(trainer: Trainer, weights: Weights) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {
        f"{role}/{name}": p for role, trained in weights.items() for name, p in trained.items()
    }
    for role, average in trainer.averages.items():
        tensors |= {f"ema/{role}/{name}": value for name, value in average.tensors.items()}
    for role, optimizer in trainer.optimizers.items():
        for name, p in trainer.trained[role].items():
            tensors |= {f"optim/{role}/{moment}/{name}": value for moment, value in optimizer.state[p].items()}
    return tensors


def _moments(found: Found, role: Role) -> list[str]:
    prefix = f"optim/{role}/"
    return sorted({key.removeprefix(prefix).partition("/")[0] for key in found.shapes if key.startswith(prefix)})


def _new(directory: Path, name: str) -> Path:
    reach("save.create")
    new = directory / f".tmp-{name}-{uuid.uuid4().hex[:8]}"
    folder(directory)
    new.mkdir()
    return new


def _put_aside(path: Path) -> Path:
    return path.rename(path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}.corrupt"))


def _purge(directory: Path) -> None:
    """Only once the newest is verified. What was left half written by a killed save goes, too."""
    reach("purge")
    found = published(directory)
    ends = {_stage(path): path for path in found}  # the newest of a stage that another has followed
    for old in set(found[:-KEEP]) - set(ends.values()):
        old.rename(old.with_name(f".tmp-{old.name}-{uuid.uuid4().hex[:8]}"))  # never a half-removed one
        reach("purge.after_rename")
    for left in directory.glob(".tmp-*"):
        shutil.rmtree(left)


def _stage(path: Path) -> int:
    return int(path.name.split("_")[1])
