"""One sample of a shard: a memory-mapped slice, verified the first time that it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import define, field, frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .format import DTYPES, HEAD, OWN, DataError, Entry, File, Index, regular, sample_hash

UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError)


@frozen
class Head:
    """What a shard says of its samples. rows: the prompt of each. ends: of each prompt's rows in an entry."""

    prompts: tuple[str, ...]
    rows: tuple[int, ...]
    hashes: tuple[str, ...]
    ends: Mapping[str, tuple[int, ...]]


@frozen
class Sample:
    """As it is stored: of texts the rows that are not padding."""

    x: Tensor
    prompt: str
    cond: Mapping[str, Tensor]


@define(eq=False)
class Verified:
    """The samples of a run whose hash was found right: by file, as it was when it was changed last, a mark a row."""

    _rows: dict[tuple[str, int], bytearray] = field(factory=dict, init=False)

    def rows(self, shard: File, changed: int) -> bytearray:
        return self._rows.setdefault((shard.file, changed), bytearray(shard.count))


def read(root: Path, index: Index, shard: File, row: int, verified: Verified | None = None) -> Sample:
    """One sample of a shard, in the file's memory: its size, its head, its types and shapes are looked at; and its
    hash, and that it is finite, where it is not among the `verified`, whose files have not changed since.
    """
    path = regular(root, shard)
    try:
        changed = path.stat().st_mtime_ns
        head, (file, names) = _head(str(path), changed, shard), _opened(str(path), changed)
        prompt = head.rows[row]
        x = _own(file, "x", "latents", index.latent, row, path)
        cond = {
            name: _own(file, key, name, entry, row, path)
            if (key := f"{OWN}{name}") in names
            else _text(file, name, entry, head, prompt)
            for name, entry in index.cond.items()
        }
        rows = Verified().rows(shard, changed) if verified is None else verified.rows(shard, changed)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}, sample {row}: cannot be read: {str(error) or type(error).__name__}") from error
    found = Sample(x, head.prompts[prompt], cond)
    if rows[row]:
        return found
    if sample_hash(x, head.prompts[prompt], sorted(cond.items())) != head.hashes[row]:
        raise DataError(f"{path}, sample {row} is damaged: its hash is another")
    for name, value in {"x": x, **cond}.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DataError(f"{path}, sample {row}: {name} has values that are not finite")
    rows[row] = 1
    return found


@lru_cache(maxsize=64)
def _opened(path: str, changed: int) -> tuple[Any, frozenset[str]]:
    """The file, mapped, and the names in it: to open it is to parse what its head says of all samples."""
    file: Any = safe_open(path, framework="pt")
    return file, frozenset(file.keys())


def _own(file: Any, key: str, what: str, entry: Entry, row: int, path: Path) -> Tensor:
    """What every sample has one of: its latents, what its first frame is made into."""
    part = file.get_slice(key)
    if len(part.get_shape()) != 1 + len(entry.shape) or row >= part.get_shape()[0]:
        raise DataError(f"{path} has {what} {tuple(part.get_shape())}: sample {row} is not among them")
    value: Tensor = part[row]
    if (tuple(value.shape), value.dtype) != (entry.shape, DTYPES[entry.dtype]):
        of = "" if key == "x" else f": {what}"
        raise DataError(
            f"{path}, sample {row}{of} is {value.dtype} {tuple(value.shape)}: must be {entry.dtype} {entry.shape}"
        )
    return value


def _text(file: Any, name: str, entry: Entry, head: Head, prompt: int) -> Tensor:
    rows = file.get_slice(f"cond/{name}")
    value: Tensor = rows[prompt] if not entry.shape else rows[slice(*bounds(head.ends[name], prompt))]
    if tuple(value.shape[1:]) != entry.shape[1:] or value.dtype != DTYPES[entry.dtype]:
        raise ValueError(f"cond/{name} is {value.dtype} {tuple(value.shape)}: must be {entry.dtype} {entry.shape}")
    if entry.shape and len(value) > entry.shape[0]:
        raise ValueError(f"cond/{name} has {len(value)} rows: must have at most {entry.shape[0]}")
    return value


def bounds(ends: Sequence[int], k: int) -> tuple[int, int]:
    return (ends[k - 1] if k else 0), ends[k]


def padded(values: Sequence[Tensor], entry: Entry) -> Tensor:
    """[n, ...], with the zeros that were not stored, which take no memory until something is written into them."""
    dtype = DTYPES[entry.dtype]
    bytes_ = np.zeros(len(values) * prod(entry.shape) * dtype.itemsize, np.uint8)
    out = torch.from_numpy(bytes_).view(dtype).view(len(values), *entry.shape)
    for row, value in zip(out, values, strict=True):
        row[: len(value)].copy_(value) if entry.shape else row.copy_(value)
    return out


def stacked(values: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """[n, ...] in `dtype`. numpy asks for large pages: of small ones a batch of videos takes thousands."""
    out = torch.from_numpy(np.empty((len(values), *values[0].shape), str(dtype).removeprefix("torch.")))
    for row, value in zip(out, values, strict=True):
        row.copy_(value)
    return out


def head_of(path: Path, shard: File) -> Head:
    """The head of a shard, which the index vouches for."""
    return _head(str(path), path.stat().st_mtime_ns, shard)


@lru_cache(maxsize=256)
def _head(path: str, changed: int, shard: File) -> Head:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[HEAD]
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error
    if hashlib.sha256(text.encode()).hexdigest() != shard.sha256:
        raise DataError(f"{path} is damaged, or of other data: its head is not what the index says")
    try:
        found = json.loads(text)
        rows, hashes = zip(*found["samples"], strict=True)
        head = Head(tuple(map(str, found["prompts"])), rows, hashes, {k: tuple(v) for k, v in found["ends"].items()})
        good = all(0 <= row < len(head.prompts) for row in rows)
    except (*UNREADABLE, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: its head cannot be read: {str(error) or type(error).__name__}") from error
    if not good or len(rows) != shard.count:
        raise DataError(f"{path} has {len(rows)} samples: the index says {shard.count}")
    return head
