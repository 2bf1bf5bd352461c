"""Everything that can be said of encoded data by reading all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from attrs import define, field, frozen
from torch import Tensor

from ..model import FlowMapSpec
from ..seeding import digest
from ..validators import counted
from .folder import foreign
from .format import INDEX, SHARD, DataError, Entry, Index, regular
from .journal import unfinished
from .remarks import remarks
from .shard import Sample, head_of, read
from .shards import LatentShards

MOST_LINES = 10
"""Of one kind; the rest is counted."""
TAME = (0.1, 10.0)
"""Standard deviations between which latents are taken for normalised."""


@frozen
class Finding:
    """refused: it cannot be trained on. warning: it can, but look at it. note: as it is."""

    kind: Literal["refused", "warning", "note"]
    text: str


def check(path: Path, backbone: FlowMapSpec | None = None) -> Iterator[Finding]:
    """Reads every sample; backbone: whose VAE and text encoder the data must be of."""
    try:
        index = Index.read(path)
    except DataError as error:
        yield Finding("refused", unfinished(path) or str(error))
        return
    yield from _facts(path, index)
    yield from _encoders(path, index, backbone)
    try:
        LatentShards.open(path, bad="skip")  # null.safetensors
    except DataError as error:
        yield Finding("refused", str(error))
    seen = Seen(Moments.of(index.latent))
    yield from _few(seen.read(path, index), "samples that cannot be read")
    yield from seen.findings(index)
    listed = {shard.file for shard in index.shards}
    if stray := sorted(f.name for f in path.iterdir() if SHARD.fullmatch(f.name) and f.name not in listed):
        yield Finding("warning", f"{counted(len(stray), 'shard')} that {INDEX} does not list, such as {stray[0]}")


def _facts(path: Path, index: Index) -> Iterator[Finding]:
    size = sum(shard.bytes for shard in index.shards)
    yield Finding(
        "note", f"{counted(index.count, 'sample')} in {counted(len(index.shards), 'shard')}, {size / 1e6:.1f} MB"
    )
    if index.skipped:
        yield Finding("warning", f"{len(index.skipped)} more could not be made, and were left out: {_keys(index)}")
    for remark in remarks(index):
        yield Finding("warning", remark)
    yield Finding("note", f"latents {index.latent.dtype} {_shape(index.latent)}")
    for name, entry in index.cond.items():
        yield Finding("note", f"condition {name!r} {entry.dtype} {_shape(entry)}")


def _shape(entry: Entry) -> str:
    return "x".join(map(str, entry.shape)) or "a number"


def _encoders(path: Path, index: Index, backbone: FlowMapSpec | None) -> Iterator[Finding]:
    for name, value in sorted(index.plan.encoders.items()):
        yield Finding("note", f"made with {name} {value[:12]}")
    if backbone is None:
        return
    for text in foreign(index.plan.encoders, backbone):
        yield Finding("refused", f"{path}: {text}")
    if unknown := {"vae", "text"} - (index.plan.encoders.keys() & backbone.encoders().keys()):
        yield Finding("warning", f"not compared with the backbone's: {', '.join(sorted(unknown))}; no hash is known")


def _few(findings: Iterator[Finding], what: str) -> Iterator[Finding]:
    count = 0
    for count, finding in enumerate(findings, 1):
        if count <= MOST_LINES:
            yield finding
    if count > MOST_LINES:
        yield Finding("refused", f"... {count - MOST_LINES} more {what}")


@define
class Moments:
    """Of latents by channel, in float64. axis: of the channels in one sample."""

    axis: int | None
    count: int = 0
    total: Tensor = field(factory=lambda: torch.zeros(1, dtype=torch.float64))
    squares: Tensor = field(factory=lambda: torch.zeros(1, dtype=torch.float64))
    least: float = float("inf")
    most: float = float("-inf")

    @classmethod
    def of(cls, entry: Entry) -> Moments:
        return cls(1 if len(entry.shape) == 4 else None)

    def add(self, x: Tensor) -> None:
        rows = x.double().reshape(1, -1) if self.axis is None else x.double().transpose(0, self.axis).flatten(1)
        self.total, self.squares = self.total + rows.sum(1), self.squares + rows.square().sum(1)
        self.count += rows.shape[1]
        self.least, self.most = min(self.least, float(x.min())), max(self.most, float(x.max()))

    def findings(self) -> Iterator[Finding]:
        if not self.count:
            return
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp_min(0).sqrt()
        yield Finding("note", f"values from {self.least:.3g} to {self.most:.3g}")
        yield Finding("note", "mean a channel: " + " ".join(f"{m:.2f}" for m in mean.tolist()))
        yield Finding("note", "std a channel:  " + " ".join(f"{s:.2f}" for s in std.tolist()))
        for channel, s in enumerate(std.tolist()):
            if s == 0.0:
                yield Finding("warning", f"channel {channel} has one value everywhere")
            elif not TAME[0] <= s <= TAME[1]:
                yield Finding("warning", f"channel {channel} has std {s:.3g}: latents should be normalised, about 1")


@define
class Seen:
    """What was seen of all samples."""

    moments: Moments
    prompts: Counter[str] = field(factory=Counter)
    latents: dict[bytes, int] = field(factory=dict)
    twice: list[tuple[int, int]] = field(factory=list)
    wordless: list[int] = field(factory=list)
    empty: list[int] = field(factory=list)

    def read(self, path: Path, index: Index) -> Iterator[Finding]:
        """A finding for every sample that cannot be read, one for a shard of which none can."""
        first = 0
        for shard in index.shards:
            try:
                head_of(regular(path, shard), shard)
            except DataError as error:
                yield Finding("refused", f"{error} ({shard.count} samples)")
            else:
                for row in range(shard.count):
                    try:
                        self.add(first + row, read(path, index, shard, row))
                    except DataError as error:
                        yield Finding("refused", str(error))
            first += shard.count

    def add(self, i: int, sample: Sample) -> None:
        self.moments.add(sample.x)
        self.prompts[sample.prompt] += 1
        if (before := self.latents.setdefault(digest(sample.x), i)) != i:
            self.twice.append((before, i))
        if not sample.prompt.strip():
            self.wordless.append(i)
        if any(value.ndim and not len(value) for value in sample.cond.values()):
            self.empty.append(i)

    def findings(self, index: Index) -> Iterator[Finding]:
        yield from self.moments.findings()
        yield Finding("note", f"{len(self.prompts)} different prompts")
        if self.twice:
            pairs = ", ".join(f"{a} and {b}" for a, b in self.twice[:MOST_LINES])
            yield Finding("warning", f"{len(self.twice)} latents are another sample's too: {pairs}{_more(self.twice)}")
        if self.wordless:
            yield Finding("warning", f"{len(self.wordless)} samples have no prompt: {_ids(self.wordless)}")
        if self.empty:
            yield Finding("warning", f"{len(self.empty)} samples have only padding for a text: {_ids(self.empty)}")


def _keys(index: Index) -> str:
    return ", ".join(one.sample for one in index.skipped[:MOST_LINES]) + _more(index.skipped)


def _ids(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:MOST_LINES])) + _more(values)


def _more(values: Sequence[object]) -> str:
    return ", ..." if len(values) > MOST_LINES else ""
