"""Several sets of data as one: with weights, and of several sizes.

A global batch has samples of one size. Which size it has, which set each of its places is of, and which sample of that
set, are functions of the seed, the stage and the iteration alone: so another number of ranks sees the same.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from math import gcd, lcm
from pathlib import Path

import torch
from attrs import define, field, frozen

from .. import validators
from .._types import Batch, Cond, Rng
from ..model import FlowMapSpec
from .draw import indices
from .fingerprint import fingerprint
from .format import DataError
from .prefetch import Prefetch
from .source import Data, Source

MIXED = 0x313ED
FINEST = 1000
"""Weights are told apart to so many parts of the least of them."""


def _parts(values: Sequence[Source | Data]) -> tuple[Source | Data, ...]:
    return tuple(values)


def _weights(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


@frozen
class Mixed:
    """`parts`, such as `LatentFolder`s, as one set of data; their sizes may differ, their encoders may not.

    weights: how often samples of each part come, relative to the others; None is by their numbers of samples, so that
    every sample comes as often as any. An evenly spread order keeps these shares over any stretch of training. workers:
    threads that read ahead, 0 for none.
    """

    parts: tuple[Source | Data, ...] = field(converter=_parts, validator=validators.min_len(1))
    weights: tuple[float, ...] | None = field(default=None, converter=_weights)
    workers: int = field(default=2, validator=validators.ge(0), repr=False)  # no part of what a run is

    @weights.validator
    def _one_each(self, attribute: object, weights: tuple[float, ...] | None) -> None:
        if weights is None:
            return
        if len(weights) != len(self.parts) or not all(0.0 < w < float("inf") for w in weights):
            raise ValueError(f"Mixed.weights = {weights}: must be {len(self.parts)} numbers above 0, one a part")

    def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> MixedData | Prefetch:
        loaded = [
            part.load(backbone, cache and cache / f"part_{k}", device=device) if isinstance(part, Source) else part
            for k, part in enumerate(self.parts)
        ]
        plain = [one.data if isinstance(one, Prefetch) else one for one in loaded]  # one reads ahead: of all
        data = MixedData.of(plain, self.weights)
        return Prefetch(data, self.workers) if self.workers else data

    def fingerprint(self) -> str | None:
        return _joined([fingerprint(part) for part in self.parts], self.weights)


@define(eq=False)
class MixedData:
    """shares: whole numbers, one a part. sizes: of each part the number of its size among the different ones."""

    parts: Sequence[Data]
    shares: tuple[int, ...]
    sizes: tuple[int, ...]
    null: Cond = field(repr=False)
    _starts: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._starts = [0, *accumulate(len(part) for part in self.parts)]

    @classmethod
    def of(cls, parts: Sequence[Data], weights: Sequence[float] | None = None) -> MixedData:
        """A `DataError` for parts whose batches cannot stand beside each other."""
        first = [part.batch([0]) for part in parts]
        for k, one in enumerate(first):
            if one.cond.keys() != first[0].cond.keys():
                raise DataError(f"part {k} has the conditions {[*one.cond]}, and part 0 {[*first[0].cond]}")
            if one.null.keys() != first[0].null.keys() or not all(
                torch.equal(value, first[0].null[name]) for name, value in one.null.items()
            ):
                raise DataError(f"part {k} has another null condition than part 0: another null prompt, or encoder")
        shapes = [(one.x.shape[1:], *(value.shape[1:] for _, value in sorted(one.cond.items()))) for one in first]
        shares = whole([len(part) for part in parts] if weights is None else weights)
        return cls(parts, shares, tuple(shapes.index(shape) for shape in shapes), first[0].null)

    def __len__(self) -> int:
        return self._starts[-1]

    def draw(self, batch: int, iteration: int, *key: int) -> list[int]:
        """The samples of global batch `iteration`."""
        kinds = sorted({*self.sizes})
        of = [tuple(share for share, kind in zip(self.shares, self.sizes, strict=True) if kind == k) for k in kinds]
        which, before = turn(tuple(sum(shares) for shares in of), iteration, key)
        members = [k for k, kind in enumerate(self.sizes) if kind == kinds[which]]
        found = []
        for place in range(before * batch, (before + 1) * batch):
            part, count = turn(of[which], place, (*key, which))
            number = members[part]
            (sample,) = indices(len(self.parts[number]), 1, count, *key, number)
            found.append(self._starts[number] + sample)
        return found

    def batch(self, index: Sequence[int]) -> Batch:
        at = [bisect_right(self._starts, i) - 1 for i in index]
        if len({self.sizes[k] for k in at}) > 1:
            raise DataError("a batch has samples of one size, and these are of several: `draw` says which go together")
        if len({*at}) == 1:
            return self.parts[at[0]].batch([i - self._starts[at[0]] for i in index])
        ordered = sorted(range(len(at)), key=at.__getitem__)  # by part; back in place is `where`
        where = sorted(range(len(at)), key=ordered.__getitem__)
        made = [
            self.parts[k].batch([index[place] - self._starts[k] for place in ordered if at[place] == k])
            for k in sorted({*at})
        ]
        cond = {name: torch.cat([part.cond[name] for part in made])[where] for name in made[0].cond}
        return Batch(torch.cat([part.x for part in made])[where], cond, self.null)

    def fingerprint(self) -> str | None:
        return _joined([fingerprint(part) for part in self.parts], self.shares)


def _joined(parts: Sequence[str | None], weights: Sequence[float] | None) -> str | None:
    if None in parts:
        return None
    return hashlib.sha256(json.dumps(["mixed", parts, weights]).encode()).hexdigest()


def whole(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratios of `weights`, as small as they can be."""
    least = min(weights)
    parts = [Fraction(w / least).limit_denominator(FINEST) for w in weights]
    common = lcm(*(part.denominator for part in parts))
    found = [int(part * common) for part in parts]
    return tuple(n // gcd(*found) for n in found)


def turn(shares: tuple[int, ...], place: int, key: tuple[int, ...]) -> tuple[int, int]:
    """Whose turn it is at `place`, and how many turns it had before, in an order in which it has its share of any
    stretch, to one, and exactly that of every sum(shares) places.
    """
    cycle, at = divmod(place, sum(shares))
    who, before = _cycle(shares, cycle, key)[at]
    return who, cycle * shares[who] + before


@lru_cache(maxsize=16)
def _cycle(shares: tuple[int, ...], cycle: int, key: tuple[int, ...]) -> list[tuple[int, int]]:
    """(who, turns before in this cycle): n turns of one who has the share n at (k + offset) / n, with drawn offsets."""
    offsets = Rng((MIXED, *key, cycle)).uniform(len(shares), torch.empty(0)).tolist()
    times = sorted(
        ((k + offset) / n, who, k)
        for who, (n, offset) in enumerate(zip(shares, offsets, strict=True))
        for k in range(n)
    )
    return [(who, k) for _, who, k in times]
