"""How a run is spread: what is refused, and where a rank's samples stand."""

from __future__ import annotations

import pytest
import torch

from flowmap import Rng, Stage
from flowmap.methods import anyflow
from flowmap.objectives import Ordered
from flowmap.training.micro import micro_batches
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
    stage, key = Stage(anyflow.forward(), 1, batch=24, micro=micro), (0, 0, 0)
    found = [micro_batches(stage, 0, key, rank, ranks)[0] for rank in range(ranks)]
    assert all(terms == (0,) for own in found for _, terms in own)
    parts = [[piece for piece, _ in own] for own in found]
    assert sorted(p for own in parts for piece in own for p in piece) == [*range(24)]
    sizes = [[len(piece) for piece in own] for own in parts]
    assert all(size == sizes[0] for size in sizes) and max(sizes[0]) <= (micro or 24)
    ((_, objective),) = stage.method.updates[0].terms
    assert isinstance(objective, Ordered)
    first = objective.first(24, Rng((*key, 0, 0), None, 24)).tolist()
    together = [sum(first[p] for piece in pieces for p in piece) for pieces in zip(*parts, strict=True)]
    if len(together) > 1:  # the diagonal comes first, on all ranks at once
        size = sum(sizes[0][:1]) * ranks
        assert together == [min(max(12 - k * size, 0), size) for k in range(len(together))]


def test_one_process_is_no_group() -> None:
    with joined(Distribution(), torch.device("cpu")):
        assert world() == 1 and not torch.distributed.is_initialized()
    assert own_device("cpu") == torch.device("cpu")
