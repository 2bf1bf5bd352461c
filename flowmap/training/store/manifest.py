"""What a checkpoint says of itself: size and sha256 of every file, and of this list itself.

The formats on disk check nothing: a flipped bit or a zeroed page in a safetensors file loads as other weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import attrs
from attrs import field, frozen

Sum: TypeAlias = tuple[int, str]
"""Bytes and sha256."""
SCHEMA = 1
"""Of a checkpoint's files; one more whenever an older version of this library would misread them."""

NAME = "MANIFEST.json"
BLOCK = 2**24  # bytes that are hashed and written while they are in a cache
PACKAGES = ("flowmap-distill", "torch", "safetensors")


@cache
def _versions() -> Mapping[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@frozen
class Manifest:
    """files: bytes and sha256 by name. shapes: of the tensors. digest: of the recipe. world: how many ranks wrote."""

    files: Mapping[str, Sum]
    shapes: Mapping[str, tuple[int, ...]]
    digest: str
    world: int
    versions: Mapping[str, str] = field(factory=_versions)
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        said = attrs.asdict(self)
        (path / NAME).write_text(json.dumps({**said, "sha256": _own(said)}, indent=1))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises for whatever is not as it was written."""
        said = json.loads((path / NAME).read_text())
        if said.pop("sha256") != _own(said):
            raise ValueError("is not what was written")
        said["files"] = {name: (size, digest) for name, (size, digest) in said["files"].items()}
        said["shapes"] = {name: tuple(shape) for name, shape in said["shapes"].items()}
        return cls(**said)


def hashed(path: Path, content: Iterable[bytes | memoryview]) -> Sum:
    """Write a new file, synchronised to the disk; what it is of what was given, not of what is read."""
    size, digest = 0, hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        for part in content:
            for first in range(0, len(part), BLOCK):
                block = memoryview(part)[first : first + BLOCK]
                digest.update(block)
                size += len(block)
                while block:  # a disk may take less than it is given
                    block = block[file.write(block) :]
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def sums(path: Path) -> dict[str, Sum]:
    """Of the files under `path`, read."""
    return {str(file.relative_to(path)): _sum(file) for file in _files(path)}


def damage(path: Path, part: int = 0, of: int = 1) -> list[str]:
    """What is wrong with the checkpoint at `path`; [] if nothing is, as far as this part of the files goes."""
    try:
        said = Manifest.read(path)
    except OSError as error:
        return [f"{NAME}: {error.strerror}"]
    except Exception:
        return [f"{NAME}: is not what was written"]
    there = [str(file.relative_to(path)) for file in _files(path)]
    wrong = [f"{name}: is missing" for name in said.files if name not in there]
    wrong += [f"{name}: does not belong there" for name in there if name not in said.files]
    for name in sorted(set(there) & set(said.files))[part::of]:
        size, digest = said.files[name]
        try:
            now, found = _sum(path / name)
        except OSError as error:
            wrong.append(f"{name}: {error.strerror}")
            continue
        if now != size:
            wrong.append(f"{name}: has {now} of {size} bytes")
        elif found != digest:
            wrong.append(f"{name}: is not what was written")
    if "train_state.json" not in said.files:
        wrong.append("train_state.json: is not listed")
    elif not wrong and (own := _named(path)) != path.name:
        wrong.append("train_state.json: makes no sense" if own is None else f"it is {own}")
    return wrong


def schema(path: Path) -> int | None:
    """Of a manifest that is as it was written, in this form or in that of before there were schemas; None of others."""
    try:
        said = json.loads((path / NAME).read_text())
        if "state.safetensors" in said and "train_state.json" in said:
            return 0
        return int(said["schema"]) if said.pop("sha256") == _own(said) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _own(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _named(path: Path) -> str | None:
    """What its state says that it is."""
    try:
        state = json.loads((path / "train_state.json").read_text())
        return f"step_{state['stage']:02d}_{state['iteration']:08d}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != NAME)


def _sum(path: Path) -> Sum:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
