"""Encoded data as batches: memory-mapped slices, verified as they are read."""

from __future__ import annotations

import hashlib
import json
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from attrs import define, field, frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from torch import Tensor
from tqdm import tqdm

from .._types import Batch, Cond, Rng
from .format import DTYPES, HEAD, NULL, OWN, DataError, Entry, File, Index, regular, sample_hash

UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError)
SUBSTITUTE = 0x5AB57
MOST_SKIPPED = 100


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


@define
class LatentShards:
    """The samples of a directory that `flowmap data` or a `VideoFolder` wrote, read as they are asked for.

    Sizes are compared when it is opened, hashes at every read. bad: what becomes of a sample that cannot be read:
    "raise", or "skip", which takes another in its place, a function of the sample's number alone, so that every rank
    keeps its number of samples; `skipped` says which, and more than `most_skipped` of them are an error all the same.
    """

    path: Path
    index: Index
    null: Cond = field(repr=False)
    bad: Literal["raise", "skip"] = "raise"
    most_skipped: int = MOST_SKIPPED
    skipped: dict[int, str] = field(factory=dict, init=False)
    _starts: list[int] = field(init=False)
    _lock: Lock = field(factory=Lock, init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        self._starts = [0, *accumulate(shard.count for shard in self.index.shards)]

    @classmethod
    def open(
        cls, path: Path, *, bad: Literal["raise", "skip"] = "raise", most_skipped: int = MOST_SKIPPED
    ) -> LatentShards:
        index = Index.read(path)
        if bad == "raise":
            for shard in index.shards:
                regular(path, shard)
        return cls(path, index, _null(path, index), bad, most_skipped)

    def __len__(self) -> int:
        return self._starts[-1]

    def fingerprint(self) -> str:
        return self.index.fingerprint()

    def batch(self, index: Sequence[int]) -> Batch:
        samples = [self.sample(i) if self.bad == "raise" else self._good(i) for i in index]
        cond = {
            name: torch.stack([padded(sample.cond[name], entry) for sample in samples])
            for name, entry in self.index.cond.items()
        }
        return Batch(torch.stack([sample.x.float() for sample in samples]), cond, self.null)

    def sample(self, i: int) -> Sample:
        """Sample i, or a DataError that names its file."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i}: there are {len(self)}")
        number = bisect_right(self._starts, i) - 1
        return read(self.path, self.index, self.index.shards[number], i - self._starts[number])

    def prompts(self) -> Iterator[str]:
        """Of every sample, in order."""
        for shard in self.index.shards:
            head = head_of(regular(self.path, shard), shard)
            yield from (head.prompts[row] for row in head.rows)

    def _good(self, i: int) -> Sample:
        """Sample i, or the first good one from another place on, which depends on i alone."""
        if i not in self.skipped:
            try:
                return self.sample(i)
            except DataError as error:
                self._skip(i, error)
        first = Rng.seeded(SUBSTITUTE, i).randint(len(self))
        for k in range(len(self)):
            j = (first + k) % len(self)
            if j in self.skipped:
                continue
            try:
                return self.sample(j)
            except DataError as error:
                self._skip(j, error)
        raise DataError(f"{self.path}: none of the {len(self)} samples can be read")

    def _skip(self, i: int, error: DataError) -> None:
        with self._lock:  # threads that read ahead may meet the same sample: it is counted and told once
            if i in self.skipped:
                return
            self.skipped[i] = str(error)
            tqdm.write(f"flowmap: sample {i} is skipped, {len(self.skipped)} so far: {error}", file=sys.stderr)
        if len(self.skipped) > self.most_skipped:
            ids = ", ".join(map(str, sorted(self.skipped)[:20]))
            raise DataError(
                f"{self.path}: {len(self.skipped)} samples cannot be read, and at most {self.most_skipped} may be "
                f"skipped: {ids}{', ...' if len(self.skipped) > 20 else ''}; the last: {error}"
            ) from error


def read(root: Path, index: Index, shard: File, row: int) -> Sample:
    """One sample of a shard: its size, its head, its types and shapes, its hash, and that it is finite."""
    path = regular(root, shard)
    try:
        head = head_of(path, shard)
        with safe_open(path, framework="pt") as file:
            x = _own(file, "x", "latents", index.latent, row, path)
            prompt, names = head.rows[row], {*file.keys()}
            cond = {
                name: _own(file, key, name, entry, row, path)
                if (key := f"{OWN}{name}") in names
                else _text(file, name, entry, head, prompt)
                for name, entry in index.cond.items()
            }
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}, sample {row}: cannot be read: {str(error) or type(error).__name__}") from error
    if sample_hash(x, head.prompts[prompt], sorted(cond.items())) != head.hashes[row]:
        raise DataError(f"{path}, sample {row} is damaged: its hash is another")
    for name, value in {"x": x, **cond}.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DataError(f"{path}, sample {row}: {name} has values that are not finite")
    return Sample(x, head.prompts[prompt], cond)


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


def padded(value: Tensor, entry: Entry) -> Tensor:
    """With the zeros that were not stored."""
    out = entry.zeros()
    if not entry.shape:
        return out.copy_(value)
    out[: len(value)] = value
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


def _null(path: Path, index: Index) -> Cond:
    file = regular(path, index.null)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != index.null.sha256:
        raise DataError(f"{path / NULL} is damaged: its hash is another")
    try:
        null = load_bytes(content)
    except UNREADABLE as error:
        raise DataError(f"{path / NULL} cannot be read: {error}") from error
    for name, value in null.items():
        if name not in index.cond or tuple(value.shape) != (1, *index.cond[name].shape):
            raise DataError(f"{path / NULL}: {name} is {tuple(value.shape)}: must be one row of a condition")
    return {name: value.float() if value.is_floating_point() else value for name, value in null.items()}
