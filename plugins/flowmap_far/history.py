"""The history of a video in the making: keys and values of finished chunks, all of them or what a window keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from attrs import evolve, frozen
from flowmap_wan.block import KeyValue, Rope, rotate
from torch import Tensor

from flowmap._types import Latent
from flowmap.window import Window

from . import layout
from .layout import CLEAN, COMPRESSED, Piece


@frozen(eq=False)
class Cache:
    """The history of a video in the making; never written to, snapshots share what they have in common.

    pieces: compressed chunks, oldest first, then at most `full - 1` clean ones. memory: keys and values, by piece, by
    layer. recent: the latents of the clean ones.
    """

    pieces: tuple[Piece, ...] = ()
    memory: tuple[Sequence[KeyValue], ...] = ()
    recent: tuple[Latent, ...] = ()

    @property
    def frames(self) -> int:
        """Of the video so far, with what is remembered no more."""
        return self.pieces[-1].first + self.pieces[-1].frames if self.pieces else 0

    @property
    def chunks(self) -> int:
        return self.pieces[-1].chunk + 1 if self.pieces else 0


@frozen(eq=False)
class Repeated(Sequence[KeyValue]):
    """Keys and values by layer, several times over along the batch: each when it is asked for."""

    memory: Sequence[KeyValue]
    times: int

    def __getitem__(self, layer: Any) -> Any:
        k, v = self.memory[layer]
        return k.repeat(self.times, 1, 1, 1), v.repeat(self.times, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.memory)


@frozen(eq=False)
class Placed(Sequence[KeyValue]):
    """Keys that were kept before their rotation, turned to where their piece stands now: each when it is asked for."""

    memory: Sequence[KeyValue]
    rope: Rope

    def __getitem__(self, layer: Any) -> Any:
        k, v = self.memory[layer]
        return rotate(k, self.rope), v

    def __len__(self) -> int:
        return len(self.memory)


@frozen(eq=False)
class Int8(Sequence[KeyValue]):
    """Keys and values by layer in a byte each, with a scale for a head's channel of keys, and for a token of values."""

    memory: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]

    @classmethod
    def of(cls, memory: Sequence[KeyValue]) -> Int8:
        """k, v [B, tokens, heads, head_dim]. Rounded, so that no gradient would go through."""
        if any(k.requires_grad or v.requires_grad for k, v in memory):
            raise ValueError("Window.int8 = True and history_grad: a history in bytes has no gradient, must be False")
        return cls([(*_bytes(k, 1), *_bytes(v, 3)) for k, v in memory])

    def __getitem__(self, layer: Any) -> Any:
        k, k_scale, v, v_scale = self.memory[layer]
        return k.to(k_scale.dtype) * k_scale, v.to(v_scale.dtype) * v_scale

    def __len__(self) -> int:
        return len(self.memory)


def _bytes(x: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """(x / scale rounded, scale): the largest of x along a dimension is 127 of them."""
    scale = (x.abs().amax(along, keepdim=True) / 127).clamp_min(1e-12)
    return (x / scale).round().to(torch.int8), scale


Encode: TypeAlias = Callable[[tuple[Piece, ...], Sequence[Latent], Cache], Sequence[Sequence[KeyValue]]]
"""Keys and values of clean chunks, by piece, by layer, with what came before."""


def extended(cache: Cache, x: Latent, full: int, encode: Encode) -> Cache:
    """`FarFlowMap.extend`, whatever encodes."""
    done = _next(cache, x)
    clean = (*(p for p in cache.pieces if p.form == CLEAN), done)
    recent = (*cache.recent, x)
    leaving = max(0, len(clean) - full + 1)
    if not leaving:
        return Cache((*cache.pieces, done), (*cache.memory, *encode((done,), (x,), cache)), recent)
    old = len(cache.pieces) - len(cache.recent)
    kept = Cache(cache.pieces[:old], cache.memory[:old])
    compressed = tuple(Piece(COMPRESSED, p.chunk, p.first, p.frames) for p in clean[:leaving])
    new = (*compressed, *clean[leaving:])
    memory = encode(new, recent, kept)
    return Cache((*kept.pieces, *new), (*kept.memory, *memory), recent[leaving:])


def appended(cache: Cache, z: Latent, memory: Sequence[KeyValue], full: int) -> Cache | None:
    """With a chunk whose keys and values are there; None where another would leave full resolution for it."""
    if len(cache.recent) + 1 >= full:
        return None
    done = _next(cache, z)
    return Cache((*cache.pieces, done), (*cache.memory, memory), (*cache.recent, z))


def fullest(chunks: int, window: Window | None) -> int:
    """The least `full` with which `appended` gives none for None in a video of so many chunks: all that are there at
    once, with the one being made; a window drops one when the next is finished."""
    return chunks if window is None else min(chunks, window.chunks + 2)


def _next(cache: Cache, x: Latent) -> Piece:
    return Piece(CLEAN, cache.chunks, cache.frames, x.shape[1])


def check(window: Window, partition: Sequence[int], full: int, most: int) -> None:
    """A ValueError where a network cannot have the window. most: the frames that it has rotary positions for.

    Where old chunks are compressed, all that are not yet must be remembered.
    """
    if full < len(partition) and window.recent < full - 1:
        raise ValueError(
            f"Window.recent = {window.recent}: of its chunks {full} are at full resolution, with the one being made: "
            f"must be at least {full - 1}"
        )
    frames = sum(layout.chunks(partition, most)[: window.sink]) + (window.recent + 1) * max(partition)
    if frames > most:
        raise ValueError(f"{window}: is up to {frames} latent frames, this network has positions for {most}")


def kept(cache: Cache, window: Window) -> Cache:
    """What the window keeps of it."""
    stays = [window.keeps(p.chunk, cache.chunks) for p in cache.pieces]
    clean = [s for s, p in zip(stays, cache.pieces, strict=True) if p.form == CLEAN]
    return Cache(
        tuple(p for p, s in zip(cache.pieces, stays, strict=True) if s),
        tuple(m for m, s in zip(cache.memory, stays, strict=True) if s),
        tuple(x for x, s in zip(cache.recent, clean, strict=True) if s),
    )


def placed(pieces: tuple[Piece, ...], window: Window, trained: int) -> tuple[Piece, ...]:
    """Chunks in a row, with gaps where some were dropped, at the frames where the window has them stand."""
    sink = sum(p.frames for p in pieces if p.chunk < window.sink)
    later = [p.first for p in pieces if p.chunk >= window.sink]
    back = window.moved(later[0] - sink, pieces[-1].first + pieces[-1].frames, trained) if later else 0
    return tuple(p if p.chunk < window.sink else evolve(p, first=p.first - back) for p in pieces)
