"""How a run is spread: what is refused, and where a rank's samples stand."""

from __future__ import annotations

import pytest
import torch

from flowmap import Stage
from flowmap.methods import anyflow
from flowmap.training.loop import _micro
from flowmap.training.ranks.distributed import Distribution, joined, own_device, world


@pytest.mark.parametrize(
    ("world", "batches", "message"),
    [
        (4, [6], "batch = 6 of stage 0 does not divide over 4 processes: start 1, 2, 3 or 6"),
        (8, [32, 12], "batch = 12 of stage 1 does not divide over 8 processes: start 1, 2 or 4"),
        (2, [1], "batch = 1 of stage 0 does not divide over 2 processes: start 1, or"),
    ],
)
def test_a_batch_that_does_not_divide_says_what_does(world: int, batches: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distribution().check(world, batches)


def test_groups_must_be_whole() -> None:
    with pytest.raises(ValueError, match="group = 4: does not divide 6 processes; must be one of 2, 3 or 6"):
        Distribution(group=4).check(6, [12])
    with pytest.raises(ValueError, match="group = 2 with shard = False"):
        Distribution(shard=False, group=2)
    Distribution(group=4).check(8, [16])
    Distribution(group=4).check(1, [5])


@pytest.mark.parametrize("micro", [None, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_the_global_batch_each_sample_once(ranks: int, micro: int | None) -> None:
    stage = Stage(anyflow.forward(), 1, batch=24, micro=micro)
    parts = [_micro(stage, rank, ranks) for rank in range(ranks)]
    assert sorted(p for own in parts for piece in own for p in piece) == [*range(24)]
    sizes = [[len(piece) for piece in own] for own in parts]
    assert all(size == sizes[0] for size in sizes) and max(sizes[0]) <= (micro or 24)
    for pieces in zip(*parts, strict=True):  # a global micro-batch is a run of the batch
        together = sorted(p for piece in pieces for p in piece)
        assert together == [*range(together[0], together[0] + len(together))]


def test_one_process_is_no_group() -> None:
    with joined(Distribution(), torch.device("cpu")):
        assert world() == 1 and not torch.distributed.is_initialized()
    assert own_device("cpu") == torch.device("cpu")
