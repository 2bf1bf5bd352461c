"""Videos without end: what a window keeps, where it stands, what it costs; it changes nothing before it drops."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, repeat
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_far import history
from flowmap_far.history import Cache, Int8
from flowmap_far.layout import CLEAN, Piece
from flowmap_far.network import FarFlowMap

from flowmap import Rng
from flowmap._types import Latent
from flowmap.rollout import generate
from flowmap.window import Window
from tests.far.test_network import example, student
from tests.test_planted_defects import planted

GRID = torch.tensor([1.0, 0.4, 0.0])
AT = torch.tensor([0.9]), torch.tensor([0.4])
LONG = tuple(repeat(1, 30))
"""A training video that no test is longer than: positions are those of the video."""
CASES = [
    pytest.param({}, Window(1, 3), id="compressed"),
    pytest.param({}, Window(1, 3, "contiguous"), id="contiguous"),
    pytest.param({"full": 1}, Window(0, 2), id="all_compressed"),
    pytest.param({"full": 64, "partition": (2, 2, 2)}, Window(1, 1), id="never_compressed"),
]


def bounded(window: Window | None, **changes: Any) -> FarFlowMap:
    u = student(**changes)
    if window is not None:
        u.bound(window)
    return u


@torch.no_grad()
def made(u: FarFlowMap, chunks: int) -> list[Latent]:
    sizes = [1, 2, 1, *repeat(2, chunks)][:chunks] if u.partition == (1, 2, 1, 2, 1) else u.chunks(chunks * 2)[:chunks]
    x, c = example(frames=sum(sizes), batch=1)
    return list(generate(u, x.split(list(sizes), dim=1), c, GRID, None))


@pytest.mark.parametrize("changes, window", CASES)
def test_until_the_first_chunk_is_dropped_all_is_as_without_a_window(changes: Any, window: Window) -> None:
    n = window.chunks + 1
    whole, with_window = made(bounded(None, **changes), n + 1), made(bounded(window, **changes), n + 1)
    assert all(torch.equal(a, b) for a, b in zip(whole[:n], with_window[:n], strict=True))
    assert not torch.equal(whole[n], with_window[n])


@torch.no_grad()
def remembered(u: FarFlowMap, chunks: int, frames: int = 1) -> Iterator[Cache]:
    x, c = example(frames=chunks * frames, batch=1)
    cache = None
    for chunk in x.split(frames, dim=1):
        cache = u.extend(cache, chunk.clone(), c)
        yield cache


@pytest.mark.parametrize("sink", [0, 2])
@torch.no_grad()
def test_what_is_kept_is_kept_as_it_was_and_heard_at_its_own_place(sink: int) -> None:
    """Within the length of training: the whole history's cache with pieces taken out."""
    window = Window(sink, 3)
    u, other = bounded(window, partition=LONG), bounded(None, partition=LONG)
    x, c = example(frames=8, batch=1)
    cache: Cache | None = None
    mine: Cache | None = None
    for k, chunk in enumerate(x.split(1, dim=1)):
        torch.testing.assert_close(u(chunk, *AT, c, mine), other(chunk, *AT, c, cache), atol=2e-6, rtol=1e-5)
        mine = u.extend(mine, chunk, c)
        cache = history.kept(other.extend(cache, chunk, c), window)
        assert [p.chunk for p in mine.pieces] == [j for j in range(k + 1) if j < sink or j > k - 3]
        assert [p.first for p in mine.pieces] == [p.chunk for p in mine.pieces]  # of one frame each


@torch.no_grad()
def test_without_a_sink_only_differences_of_positions_count() -> None:
    """Top-aligned and contiguous: moved together, at other places; beyond the length of training, too."""
    top, contiguous = (bounded(Window(0, 3, p), partition=LONG[:7]) for p in ("top", "contiguous"))
    for a, b in zip(made(top, 9), made(contiguous, 9), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_with_a_sink_they_differ() -> None:
    top, contiguous = (bounded(Window(1, 3, p), partition=LONG[:7]) for p in ("top", "contiguous"))
    assert float((made(top, 6)[-1] - made(contiguous, 6)[-1]).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "positions, end, expected",
    [
        ("top", 5, [0, 1, 2, 3, 4]),
        ("top", 7, [0, 3, 4, 5, 6]),
        ("top", 8, [0, 4, 5, 6, 7]),
        ("top", 500, [0, 4, 5, 6, 7]),
        ("contiguous", 7, [0, 1, 2, 3, 4]),
        ("contiguous", 500, [0, 1, 2, 3, 4]),
    ],
)
def test_positions_are_those_of_training(positions: Any, end: int, expected: list[int]) -> None:
    pieces = tuple(Piece(CLEAN, k, k, 1) for k in (0, *range(end - 4, end)))
    assert [p.first for p in history.placed(pieces, Window(1, 3, positions), 8)] == expected


def test_a_gap_that_is_larger_than_a_training_video_does_not_put_two_at_one_place() -> None:
    pieces = tuple(Piece(CLEAN, k, k, 1) for k in (0, 1, *range(46, 50)))
    assert [p.first for p in history.placed(pieces, Window(2, 3), 4)] == [0, 1, 2, 3, 4, 5]


def size(cache: Cache) -> int:
    layers = [layer for piece in cache.memory for layer in (piece.memory if isinstance(piece, Int8) else piece)]
    tensors = [*cache.recent, *(tensor for layer in layers for tensor in layer)]
    held = {a.untyped_storage().data_ptr(): a.untyped_storage().nbytes() for a in tensors}
    return sum(held.values())


@pytest.mark.parametrize(
    "changes, int8", [({}, False), ({"full": 64}, True)], ids=["compressed", "never_compressed_bytes"]
)
def test_memory_is_constant_over_two_hundred_chunks(changes: Any, int8: bool) -> None:
    u = bounded(evolve(Window(1, 3), int8=int8), partition=(1, 1, 1, 1), **changes)
    sizes = [size(cache) for cache in remembered(u, 200)]
    assert len(set(sizes[4:])) == 1
    assert sizes[0] < sizes[4]
    assert sizes[-1] <= (3e4 if int8 else 1e5)


def test_a_byte_each_is_near_what_it_stands_for() -> None:
    """Though a channel of keys is large, or a token of values."""
    k, v = Rng.seeded(1).noise_like(torch.zeros(2, 2, 6, 3, 8))
    k[..., 2] *= 100
    v[:, 4] *= 100
    ((near_k, near_v),) = Int8.of([(k, v)])
    assert float(((near_k - k).abs() / k.abs().amax(1, keepdim=True)).max()) < 0.5 / 126
    assert float(((near_v - v).abs() / v.abs().amax(3, keepdim=True)).max()) < 0.5 / 126


def test_a_history_in_bytes_is_small_and_nearly_the_same() -> None:
    (*_, whole), (*_, small) = (remembered(bounded(Window(1, 3, int8=byte), full=64), 4) for byte in (False, True))
    latents = sum(x.nbytes for x in whole.recent)
    assert size(small) - latents < 0.4 * (size(whole) - latents)
    plain, near = (made(bounded(Window(1, 2, int8=byte)), 6) for byte in (False, True))
    error = max(float((a - b).norm() / a.norm()) for a, b in zip(plain, near, strict=True))
    assert 0 < error < 1e-2
    assert all(torch.equal(a, b) for a, b in zip(near, made(bounded(Window(1, 2, int8=True)), 6), strict=True))


def test_a_stream_is_longer_than_the_positions_that_there_are() -> None:
    u = bounded(Window(1, 3))
    assert u.net.config.rope_max_seq_len == 64
    x, c = example(frames=1, batch=1)
    noise = (Rng.seeded(k).noise_like(x) for k in range(10**9))
    with torch.no_grad():
        *_, last = islice(generate(u, noise, c, GRID[[0, 2]], None), 66)
    assert last.isfinite().all()


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Window.recent = 1: of its chunks 3 are at full resolution.*least 2"):
        student().bound(Window(4, 1))
    with pytest.raises(ValueError, match="up to 71 latent frames, this network has positions for 64"):
        student().bound(Window(1, 34))
    with pytest.raises(ValueError, match=r"Window.recent = 0: must be >= 1"):
        Window(1, 0)
    with pytest.raises(ValueError, match=r"Window.positions = 'tops': must be 'top' or 'contiguous'; did you"):
        Window(1, 2, "tops")  # type: ignore[arg-type]


HISTORY = "flowmap_far.history"
LEFT = "sum(p.frames for p in cache.pieces)"
DEFECTS = [
    ("keys kept as they are rotated", "flowmap_wan.block", "k if turned else plain", "k"),
    ("the sink moves, too", HISTORY, "p if p.chunk < window.sink else evolve", "evolve"),
    ("one chunk too few", "flowmap.window", "chunk >= finished - self.recent", "chunk > finished - self.recent"),
    ("chunks numbered by those that are left", HISTORY, "(CLEAN, cache.chunks,", "(CLEAN, len(cache.pieces),"),
    ("frames counted by those that are left", HISTORY, "cache.chunks, cache.frames,", f"cache.chunks, {LEFT},"),
    ("one scale for all channels of keys", HISTORY, "_bytes(k, 1)", "_bytes(k, (1, 2, 3))"),
]


def all_tests() -> None:
    for case in CASES[:2]:
        test_until_the_first_chunk_is_dropped_all_is_as_without_a_window(*case.values)  # type: ignore[arg-type]
    test_what_is_kept_is_kept_as_it_was_and_heard_at_its_own_place(2)
    test_without_a_sink_only_differences_of_positions_count()
    test_positions_are_those_of_training("top", 500, [0, 4, 5, 6, 7])
    test_a_byte_each_is_near_what_it_stands_for()


@pytest.mark.parametrize("module, old, new", [pytest.param(*rest, id=what) for what, *rest in DEFECTS])
def test_a_mistake_is_seen(module: str, old: str, new: str) -> None:
    with planted(module, old, new), pytest.raises((AssertionError, ValueError)):
        all_tests()
