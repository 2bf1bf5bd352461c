"""Batches read before they are asked for, so that training does not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol, runtime_checkable

from attrs import define, field, validators

from .._types import Batch
from .draw import draw
from .fingerprint import fingerprint


@runtime_checkable
class ReadsAhead(Protocol):
    def expect(self, batches: Iterable[Sequence[int]]) -> None:
        """What will be asked for next, in that order; in place of what was expected before."""


class _Data(Protocol):
    def __len__(self) -> int: ...

    def batch(self, index: Sequence[int]) -> Batch: ...


@define(eq=False)
class Prefetch:
    """`data`, with `workers` threads that keep the next `ahead` batches of what `expect` was told ready.

    `batch` is what it was: a function of the index alone, whatever was expected, in whatever order. An error of a
    sample comes when its batch is asked for.
    """

    data: _Data
    workers: int = field(default=2, validator=validators.ge(1))
    ahead: int = field(default=4, validator=validators.ge(1))
    _coming: deque[tuple[int, ...]] = field(factory=deque, init=False, repr=False)
    _read: dict[tuple[int, ...], Future[Batch]] = field(factory=dict, init=False, repr=False)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.data)

    def draw(self, batch: int, iteration: int, *key: int) -> list[int]:
        return draw(self.data, batch, iteration, *key)

    def expect(self, batches: Iterable[Sequence[int]]) -> None:
        self._coming = deque(tuple(index) for index in batches)
        self._go_on()

    def batch(self, index: Sequence[int]) -> Batch:
        key = tuple(index)
        future = self._read.get(key)
        if key in self._coming:
            while self._coming.popleft() != key:
                pass
            self._go_on()
        return self.data.batch(index) if future is None else future.result()

    def _go_on(self) -> None:
        """Forget what is not wanted soon, read what is; a batch that comes twice is read once."""
        wanted = dict.fromkeys(islice(self._coming, self.ahead))
        for key in [key for key in self._read if key not in wanted]:
            self._read.pop(key)
        for key in wanted:
            if key not in self._read:
                self._pool = self._pool or ThreadPoolExecutor(self.workers, thread_name_prefix="flowmap-data")
                self._read[key] = self._pool.submit(self.data.batch, key)

    def fingerprint(self) -> str | None:
        return fingerprint(self.data)

    def close(self) -> None:
        """Wait for what is being read; after it, `batch` reads when it is asked."""
        pool, self._pool = self._pool, None
        self._coming.clear()
        self._read.clear()
        if pool is not None:
            pool.shutdown(cancel_futures=True)
