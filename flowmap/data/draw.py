"""Which samples a global batch has."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, runtime_checkable

from .._types import Rng


@runtime_checkable
class Draws(Protocol):
    """Data that says itself which samples come together. Not a part of `Data`: nobody has to."""

    def draw(self, batch: int, iteration: int, *key: int) -> list[int]:
        """The samples of global batch `iteration`: a pure function."""


def draw(data: _Counted, batch: int, iteration: int, *key: int) -> list[int]:
    """The samples of global batch `iteration`, as the data says, or by `indices`."""
    return data.draw(batch, iteration, *key) if isinstance(data, Draws) else indices(len(data), batch, iteration, *key)


def indices(length: int, batch: int, iteration: int, *key: int) -> list[int]:
    """The samples of global batch `iteration`: epochs of permutations keyed by `key`, a pure function.

    So a resumed run needs no cursor, and another number of ranks sees the same samples.
    """
    first = iteration * batch
    return [_permutation(length, k // length, key)[k % length] for k in range(first, first + batch)]


@lru_cache(maxsize=16)
def _permutation(length: int, epoch: int, key: tuple[int, ...]) -> list[int]:
    return Rng((*key, epoch)).permutation(length).tolist()


class _Counted(Protocol):
    def __len__(self) -> int: ...
