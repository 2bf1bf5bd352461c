"""Encoded data as batches: memory-mapped slices, verified as they are read."""

from __future__ import annotations

import hashlib
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Literal

import torch
from attrs import define, field
from safetensors.torch import load as load_bytes
from tqdm import tqdm

from .._types import Batch, Cond, Rng
from .format import DTYPES, NULL, DataError, Index, regular
from .shard import UNREADABLE, Sample, Verified, head_of, padded, read, stacked

SUBSTITUTE = 0x5AB57
MOST_SKIPPED = 100


@define
class LatentShards:
    """The samples of a directory that `flowmap data` or a `VideoFolder` wrote, read as they are asked for.

    Sizes are compared when it is opened and at every read, the hash of a sample when it is read for the first time,
    and again when its file has changed. Conditions come in the types in which they are stored. bad: what becomes of a
    sample that cannot be read: "raise", or "skip", which takes another in its place, a function of the sample's
    number alone, so that every rank keeps its number of samples; `skipped` says which, and more than `most_skipped`
    of them are an error all the same.
    """

    path: Path
    index: Index
    null: Cond = field(repr=False)
    bad: Literal["raise", "skip"] = "raise"
    most_skipped: int = MOST_SKIPPED
    skipped: dict[int, str] = field(factory=dict, init=False)
    _starts: list[int] = field(init=False)
    _verified: Verified = field(factory=Verified, init=False, repr=False)
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
        cond = {name: padded([s.cond[name] for s in samples], entry) for name, entry in self.index.cond.items()}
        return Batch(stacked([sample.x for sample in samples], torch.float32), cond, self.null)

    def sample(self, i: int) -> Sample:
        """Sample i, or a DataError that names its file."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i}: there are {len(self)}")
        number = bisect_right(self._starts, i) - 1
        return read(self.path, self.index, self.index.shards[number], i - self._starts[number], self._verified)

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
    return {name: value.to(DTYPES[index.cond[name].dtype]) for name, value in null.items()}
