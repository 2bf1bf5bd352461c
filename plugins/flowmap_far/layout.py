"""How a video is cut into chunks, what stands in a sequence of tokens, and which token sees which.

A piece is a chunk in one of three forms: COMPRESSED, a clean chunk of long ago at a quarter of the tokens; CLEAN, a
clean chunk at full resolution; NOISY, the chunk that is being made. FAR, arXiv:2503.19325; AnyFlow, arXiv:2605.13724.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, repeat

import torch
from attrs import frozen
from flowmap_wan.block import Spans
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from flowmap._types import to_device

COMPRESSED, CLEAN, NOISY = 0, 1, 2


@frozen
class Piece:
    """form: of the three above; chunk: its place in the video; first: its first frame; frames: how many."""

    form: int
    chunk: int
    first: int
    frames: int


def chunks(partition: Sequence[int], frames: int) -> tuple[int, ...]:
    """The sizes of the chunks of a video of `frames` frames, the last cut to fit.

    `partition` itself for as many frames as it has; else it goes on with its largest chunk, in place of its last.
    """
    if frames < 1:
        raise ValueError(f"{frames} latent frames: must be at least 1")
    if frames == sum(partition):
        return tuple(partition)
    found, left = list[int](), frames
    for size in _endless(partition):
        found.append(min(size, left))
        left -= found[-1]
        if not left:
            return tuple(found)
    raise AssertionError("unreachable: the sizes have no end")


def finished(partition: Sequence[int], frames: int) -> tuple[int, ...]:
    """The sizes of the whole chunks that `frames` frames of history are."""
    found: list[int] = []
    for size in _endless(partition):
        if sum(found) >= frames:
            break
        found.append(size)
    if sum(found) != frames:
        raise ValueError(
            f"a history of {frames} frames ends inside a chunk: must be the sum of the first few of {partition}"
        )
    return tuple(found)


def _endless(partition: Sequence[int]) -> Iterator[int]:
    return chain(partition[:-1], repeat(max(partition)))


def training(sizes: Sequence[int], limit: int) -> tuple[Piece, ...]:
    """[compressed | clean | noisy]: the last `limit` chunks noisy, those but the last of them clean too.

    No token would see a clean copy of the last chunk, so there is none.
    """
    first = [sum(sizes[:k]) for k in range(len(sizes))]
    old, last = max(0, len(sizes) - limit), len(sizes) - 1
    span = {COMPRESSED: range(old), CLEAN: range(old, last), NOISY: range(old, len(sizes))}
    return tuple(Piece(form, k, first[k], sizes[k]) for form, which in span.items() for k in which)


def parted(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """What of `training` is history, and what is noisy."""
    return tuple(p for p in pieces if p.form != NOISY), tuple(p for p in pieces if p.form == NOISY)


def sees(form: Tensor, chunk: Tensor, other_form: Tensor, other_chunk: Tensor) -> Tensor:
    """Whether a query in (form, chunk) attends to a key in (other_form, other_chunk); broadcasts.

                  COMPRESSED j    CLEAN j    NOISY j
    COMPRESSED i    j <= i          no         no
    CLEAN i         all           j <= i       no
    NOISY i         all            j < i     j == i
    """
    compressed = (other_form == COMPRESSED) & ((form != COMPRESSED) | (other_chunk <= chunk))
    clean = (other_form == CLEAN) & (form != COMPRESSED) & (other_chunk <= chunk - (form == NOISY).long())
    noisy = (other_form == NOISY) & (form == NOISY) & (other_chunk == chunk)
    return compressed | clean | noisy


def labels(pieces: Sequence[Piece], tokens: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(form, chunk) of every token; tokens: of a frame, (compressed, full)."""
    counts = torch.tensor([p.frames * tokens[p.form != COMPRESSED] for p in pieces])
    both = torch.tensor([[p.form for p in pieces], [p.chunk for p in pieces]])
    form, chunk = to_device(both.repeat_interleave(counts, dim=1), device)  # how many there are, no device is asked
    return form, chunk


@lru_cache(maxsize=8)
def dense_mask(
    queries: tuple[Piece, ...], keys: tuple[Piece, ...], tokens: tuple[int, int], device: torch.device
) -> Tensor:
    """[queries, keys] bool."""
    form, chunk = (label[:, None] for label in labels(queries, tokens, device))
    return sees(form, chunk, *labels(keys, tokens, device))


@lru_cache(maxsize=8)
def block_mask(
    queries: tuple[Piece, ...], keys: tuple[Piece, ...], tokens: tuple[int, int], device: torch.device
) -> BlockMask:
    """The same for flex attention, whose kernels read it block by block; it is whole while it is made."""
    (form, chunk), (other_form, other_chunk) = (labels(p, tokens, device) for p in (queries, keys))

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(form[q], chunk[q], other_form[k], other_chunk[k])

    return create_block_mask(rule, None, None, len(form), len(other_form), device=str(device))


def spans(queries: Sequence[Piece], keys: Sequence[Piece], tokens: tuple[int, int]) -> Spans:
    """The same as ranges of keys, a query piece at a time: what a piece sees is the pieces of a few rows."""
    ends = [0, *accumulate(p.frames * tokens[p.form != COMPRESSED] for p in keys)]
    found = []
    for q in queries:
        seen = [i for i, k in enumerate(keys) if bool(sees(*map(torch.tensor, (q.form, q.chunk, k.form, k.chunk))))]
        ranges: list[tuple[int, int]] = []
        for i in seen:
            joined = bool(ranges) and ranges[-1][1] == ends[i]
            ranges[-1:] = [(ranges[-1][0], ends[i + 1])] if joined else [*ranges[-1:], (ends[i], ends[i + 1])]
        found.append((q.frames * tokens[q.form != COMPRESSED], tuple(ranges)))
    return tuple(found)
