"""Reading ahead changes when something is read, never what."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from attrs import define, field

from flowmap import Batch
from flowmap.data import Prefetch, ReadsAhead, indices

from .made import written


@define
class Slow:
    """Says when it is asked, and by which thread; sample 13 is bad."""

    asked: list[tuple[int, ...]] = field(factory=list)
    threads: set[str] = field(factory=set)
    seconds: float = 0.0

    def __len__(self) -> int:
        return 20

    def batch(self, index: Sequence[int]) -> Batch:
        self.asked.append(tuple(index))
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        if 13 in index:
            raise ValueError("sample 13")
        return Batch(torch.tensor([float(i) for i in index]), {}, {})


def plan(iterations: int, updates: int = 1) -> list[list[int]]:
    return [indices(12, 4, k, 0) for k in range(iterations) for _ in range(updates)]


@pytest.mark.parametrize("updates", [1, 2])
def test_the_same_batches_each_read_once(updates: int) -> None:
    slow = Slow()
    data, coming = Prefetch(slow, workers=2, ahead=3), plan(9, updates)
    for k, index in enumerate(coming):
        data.expect(coming[k : k + 6])
        assert data.batch(index).x.tolist() == index
    data.close()
    assert sorted(slow.asked) == sorted(map(tuple, plan(9)))
    assert "MainThread" not in slow.threads or updates == 1


def test_no_more_than_asked_is_read_ahead() -> None:
    slow = Slow()
    data = Prefetch(slow, workers=1, ahead=2)
    data.expect([[0], [1], [2], [3]])
    data.batch([0])
    data.close()
    assert slow.asked in ([(0,)], [(0,), (1,)], [(0,), (1,), (2,)])  # those that did not begin are cancelled


def test_reading_goes_on_while_training_works() -> None:
    data, began = Prefetch(Slow(seconds=0.05), workers=2, ahead=4), time.monotonic()
    coming = [[k] for k in range(8)]
    data.expect(coming)
    for index in coming:
        data.batch(index)
        time.sleep(0.05)
    assert time.monotonic() - began < 0.7  # one after the other: 0.8
    data.close()


def test_what_was_not_expected_is_read_and_errors_come_with_their_batch() -> None:
    data = Prefetch(Slow(), workers=2)
    data.expect([[1], [13], [2]])
    assert data.batch([5]).x.tolist() == [5.0]
    assert data.batch([1]).x.tolist() == [1.0]
    with pytest.raises(ValueError, match="sample 13"):
        data.batch([13])
    assert data.batch([2]).x.tolist() == [2.0]
    data.close()
    assert data.batch([3]).x.tolist() == [3.0]


def test_threads_end_and_read_shards_alike(tmp_path: Path) -> None:
    shards, before = written(tmp_path, 40), threading.active_count()
    data = Prefetch(shards, workers=2, ahead=8)
    assert isinstance(data, ReadsAhead) and not isinstance(shards, ReadsAhead) and len(data) == 40
    assert data.fingerprint() == shards.fingerprint()
    coming = [indices(40, 6, k, 0) for k in range(30)]
    data.expect(coming)
    for index in coming:
        torch.testing.assert_close(data.batch(index).cond, shards.batch(index).cond, rtol=0, atol=0)
    data.close()
    assert threading.active_count() == before
