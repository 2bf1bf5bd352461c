"""Chunks, sequences and who sees whom, against tables written out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from flowmap_far import layout
from flowmap_far.layout import CLEAN, COMPRESSED, NOISY, Piece
from torch.nn.attention.flex_attention import create_mask

CPU = torch.device("cpu")
PARTITION = (1, 3, 3, 3, 3, 3, 3, 2)
TOKENS = (390, 1560)  # of a frame of 480 × 832, compressed and full


def test_a_training_video_has_the_partition_itself() -> None:
    assert layout.chunks(PARTITION, 21) == PARTITION


@pytest.mark.parametrize(
    "frames, expected",
    [
        (1, (1,)),
        (4, (1, 3)),
        (6, (1, 3, 2)),
        (20, (1, 3, 3, 3, 3, 3, 3, 1)),
        (22, (1, 3, 3, 3, 3, 3, 3, 3)),
        (30, (1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2)),
    ],
)
def test_other_lengths_are_cut_or_go_on(frames: int, expected: tuple[int, ...]) -> None:
    assert layout.chunks(PARTITION, frames) == expected


def test_a_history_is_whole_chunks() -> None:
    assert layout.finished(PARTITION, 7) == (1, 3, 3)
    assert layout.finished(PARTITION, 22) == (1, 3, 3, 3, 3, 3, 3, 3)
    assert layout.finished(PARTITION, 0) == ()
    with pytest.raises(ValueError, match="history of 5 frames ends inside a chunk"):
        layout.finished(PARTITION, 5)


# Tokens of a training sequence by its number of chunks, arXiv:2605.13724's layout with a clean copy of every chunk.
WITH_LAST_COPY = {3: 21840, 4: 28470, 5: 29640, 6: 30810, 7: 31980, 8: 30030}


@pytest.mark.parametrize("n, expected", WITH_LAST_COPY.items())
def test_training_sequences_have_the_published_length_but_for_the_copy_that_nothing_sees(n: int, expected: int) -> None:
    form, _ = layout.labels(layout.training(PARTITION[:n], 3), TOKENS, CPU)
    assert len(form) == expected - PARTITION[n - 1] * TOKENS[1]


def test_a_training_sequence() -> None:
    assert layout.training((1, 3, 3, 2), 2) == (
        Piece(COMPRESSED, 0, 0, 1),
        Piece(COMPRESSED, 1, 1, 3),
        Piece(CLEAN, 2, 4, 3),
        Piece(NOISY, 2, 4, 3),
        Piece(NOISY, 3, 7, 2),
    )


def allowed(form: int, i: int, other: int, j: int) -> bool:
    """The table, one cell at a time."""
    if form == COMPRESSED:
        return other == COMPRESSED and j <= i
    if other == COMPRESSED:
        return True
    if form == CLEAN:
        return other == CLEAN and j <= i
    return (other == NOISY and j == i) or (other == CLEAN and j < i)


@pytest.mark.parametrize("sizes, limit", [((1, 2, 1, 2, 1), 3), ((2, 1), 3), ((1, 1, 1, 1), 1), ((3,), 3)])
def test_the_mask_is_the_table_token_by_token(sizes: tuple[int, ...], limit: int) -> None:
    pieces, tokens = layout.training(sizes, limit), (2, 5)
    each = [(p.form, p.chunk) for p in pieces for _ in range(p.frames * tokens[p.form != COMPRESSED])]
    expected = torch.tensor([[allowed(*q, *k) for k in each] for q in each])
    assert torch.equal(layout.dense_mask(pieces, pieces, tokens, CPU), expected)
    rows = [
        [any(i <= k < j for i, j in seen) for k in range(len(each))]
        for count, seen in layout.spans(pieces, pieces, tokens)
        for _ in range(count)
    ]
    assert torch.equal(torch.tensor(rows), expected)
    block = layout.block_mask(pieces, pieces, tokens, CPU)
    assert torch.equal(create_mask(block.mask_mod, 1, 1, len(each), len(each), device="cpu")[0, 0], expected)


def test_a_single_chunk_sees_all_of_its_history() -> None:
    """So it needs no mask."""
    *before, last = layout.training(PARTITION, 3)
    before = [p for p in before if p.form != NOISY]
    assert bool(layout.dense_mask((last,), (*before, last), (2, 5), CPU).all())
    first = Piece(COMPRESSED, 0, 0, 1)
    assert bool(layout.dense_mask((first,), (first,), (2, 5), CPU).all())


def test_no_token_sees_a_later_chunk_nor_a_noisy_one_but_its_own() -> None:
    pieces = layout.training(PARTITION, 3)
    form, chunk = (label.unique_consecutive() for label in layout.labels(pieces, (1, 1), CPU))
    for (a, i), (b, j) in itertools.product([(p.form, p.chunk) for p in pieces], repeat=2):
        seen = bool(layout.sees(*(torch.tensor(v) for v in (a, i, b, j))))
        # all compressed chunks are older than all others, so "all" is "the past"
        assert not seen or j <= i
        assert not seen or b != NOISY or (a == NOISY and i == j)
    assert len(form) == 3
    assert chunk.max() == 7
