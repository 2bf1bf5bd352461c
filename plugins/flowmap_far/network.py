"""u_θ that makes a video chunk after chunk, over diffusers' `AnyFlowFARTransformer3DModel`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeAlias

import torch
from flowmap_wan.block import KeyValue, Mask, Rope, rotation
from flowmap_wan.network import WanFlowMap, patchify
from torch import Tensor

from flowmap import Rng
from flowmap._types import Cond, Latent, Role, Time
from flowmap.model import ConditionError, Kept, Recorded
from flowmap.window import Window

from . import history, layout
from .history import Cache, Int8, Placed, Repeated, extended
from .layout import CLEAN, COMPRESSED, NOISY, Piece

FAR_PATCH = "far_patch_embedding"
FINE = 1 << 20
Attention: TypeAlias = Literal["auto", "dense", "spans", "flex"]
SMALL = 2048  # tokens up to which a mask in full costs less than a call a piece


class FarFlowMap(WanFlowMap):
    """FAR with two times, arXiv:2503.19325, arXiv:2605.13724: chunks see themselves, and what came before.

    partition: the chunks of a training video. full: how many of the last chunks, the one being made among them, are
    at full resolution; older ones are compressed. long: the share of iterations that train on a prefix of random
    length, from `full` chunks to all; the others take exactly `full`. bidirectional: the share that trains on all
    frames as one chunk, so that the network stays usable that way.

    A forward pass is of one of two kinds. With cond["history"] [B, F', C, H, W], which `teacher_forcing` puts there:
    z holds the last `full` of the chunks so far, all noisy at (t, r), each seeing the clean ones before it. Without:
    z is one chunk, and `cache` what came before.
    """

    def __init__(
        self,
        net: Any,
        role: Role,
        *,
        partition: tuple[int, ...],
        full: int,
        long: float = 0.5,
        bidirectional: float = 0.0,
        attention: Attention = "auto",
        keep_history: bool | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(net, role, whole=(FAR_PATCH,), **settings)
        self.partition, self.full, self.long, self.bidirectional = partition, full, long, bidirectional
        self.attention, self.keep_history = attention, keep_history
        self.window: Window | None = None

    def chunks(self, frames: int) -> tuple[int, ...]:
        if self.window is None and frames > (most := self.net.config.rope_max_seq_len):
            raise ValueError(f"{frames} latent frames: this network has rotary positions for at most {most}")
        return layout.chunks(self.partition, frames)

    def bound(self, window: Window) -> None:
        history.check(window, self.partition, self.full, self.net.config.rope_max_seq_len)
        if self.context is not None:
            raise ValueError(f"{window}: several ranks share a sample's tokens: must be one rank a sample")
        self.window = window

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        """A prefix of n chunks: its last `full` ones, and the clean frames before the last in cond["history"]."""
        sizes = self.chunks(x.shape[1])
        least = min(self.full, len(sizes))
        whole, long = (rng.randint(FINE) < share * FINE for share in (self.bidirectional, self.long))
        n = least + rng.randint(len(sizes) - least + 1) * long
        if whole or n == 1:
            return x[:, : x.shape[1] if whole else sizes[0]], cond
        start, last, end = sum(sizes[: max(0, n - self.full)]), sum(sizes[: n - 1]), sum(sizes[:n])
        return x[:, start:end], {**cond, "history": x[:, :last]}

    def packed(self, x: Latent, cond: Cond) -> Cond | None:
        """Where nothing is compressed: else a chunk's history is not one for all that read it."""
        sizes = self.chunks(x.shape[1])
        return {**cond, "history": x[:, : -sizes[-1]]} if 1 < len(sizes) <= self.full and not self.window else None

    def keeping(self, samples: Tensor) -> Kept | None:
        """Keys and values of their history, but in a context of several ranks, or where memory is short."""
        keeps = not self.checkpointing if self.keep_history is None else self.keep_history
        return Kept(samples) if keeps and self.context is None else None

    def recording(self, cache: Cache | None) -> Recorded:
        """As `extend` has it, where no chunk leaves full resolution: those are encoded anew."""
        return Recorded(cache)

    def unrecorded(self, frames: int) -> str | None:
        sizes = self.chunks(frames)
        full = history.fullest(len(sizes), self.window)
        if full <= self.full:
            return None
        return (
            f"this {type(self).__name__} has the last {self.full} chunks at full resolution (Far.full), the one being "
            f"made among them, and a video of {frames} latent frames has {len(sizes)}, {sizes}; where one is "
            f"compressed others are encoded anew, by a call: must be a number, or Far.full at least {full}"
        )

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache | Kept | Recorded | None = None) -> Latent:
        record, cache = (cache, cache.before) if isinstance(cache, Recorded) else (None, cache)
        kept, cache = (cache, Cache()) if isinstance(cache, Kept) else (None, cache or Cache())
        self._check(z, cond, cache)
        past: Sequence[Sequence[KeyValue]] = cache.memory
        before = cache.pieces
        if "history" in cond:
            pieces = self._training(cond["history"], z)
            if kept is not None and kept.memory:
                self._graphless()
                before, pieces = layout.parted(pieces)
                h, context, past = self.tokens(z), 0, (Repeated(kept.memory, len(z) // len(kept.samples)),)
            else:
                h, context = self._assemble(pieces, cond["history"], z)
        else:
            self.chunks(cache.frames + z.shape[1])  # is there a position for each?
            own = (Piece(NOISY, cache.chunks, cache.frames, z.shape[1]),)
            pieces, past = self._placed(own, cache, z)
            h, context = self.tokens(z), 0
        e = self.embed(t, r)
        groups = [(h.shape[1] - context) // e.shape[1]] * e.shape[1]
        if context:
            zero = torch.zeros_like(t if t.ndim == 1 else t[:, 0])
            groups, e = [context, *groups], torch.cat([self.embed(zero, zero), e], 1)
        rope, mask = self._rope(pieces, z), self._mask(pieces, before, z)
        keep: Callable[[Tensor, Tensor], KeyValue] | None = None if record is None else _alone
        if kept is not None and context:
            keep = partial(_picked, kept.samples, context)
        turned = record is None or self.window is None
        h, found = self.through(h, e, groups, self.text(cond), rope, mask, past, keep, turned)
        if kept is not None and keep is not None:
            kept.memory = found
        if record is not None:
            record.after = self._recorded(cache, z, found)
        return self.latent(h, e, groups, z, skip=context)

    def _graphless(self) -> None:
        if torch.is_grad_enabled() and self.trained():
            raise ValueError(f"the {self.role} is called for a gradient with a history that was kept without its graph")

    def extend(self, cache: Cache | None, x: Latent, cond: Cond) -> Cache:
        """Encode a finished chunk; where that pushes one out of full resolution, compress it and encode the rest anew.

        Compressed chunks see compressed ones alone, so theirs never change: at most `full` chunks are encoded, however
        long the video. Equal to encoding the whole history.
        """
        return self._extended(cache, x, None, cond)

    def extend_noisy(self, cache: Cache | None, z: Latent, t: Time, cond: Cond) -> Cache:
        """The same t for all chunks of a video: those that are encoded anew are as they were, z_t."""
        return self._extended(cache, z, t, cond)

    def _extended(self, cache: Cache | None, z: Latent, t: Time | None, cond: Cond) -> Cache:
        whole = extended(cache or Cache(), z, self.full, partial(self._encode, cond=cond, t=t))
        return whole if self.window is None else history.kept(whole, self.window)

    def _recorded(self, cache: Cache, z: Latent, found: Sequence[KeyValue]) -> Cache | None:
        """With a chunk whose keys and values the call that made it gave; None where others would be encoded anew."""
        bytes_ = self.window is not None and self.window.int8
        whole = history.appended(cache, z.detach(), Int8.of(found) if bytes_ else found, self.full)
        return whole if whole is None or self.window is None else history.kept(whole, self.window)

    def _placed(
        self, pieces: tuple[Piece, ...], before: Cache, like: Latent
    ) -> tuple[tuple[Piece, ...], Sequence[Sequence[KeyValue]]]:
        """Chunks, and keys and values of those before them, at the positions that they have in the window."""
        if self.window is None:
            return pieces, before.memory
        n, now = len(before.pieces), history.placed((*before.pieces, *pieces), self.window, sum(self.partition))
        past = [Placed(m, self._rope((p,), like)) for m, p in zip(before.memory, now[:n], strict=True)]
        return now[n:], past

    def _encode(
        self, pieces: tuple[Piece, ...], x: Sequence[Latent], before: Cache, cond: Cond, t: Time | None = None
    ) -> Sequence[Sequence[KeyValue]]:
        """Keys and values of finished chunks at r = t, by piece, by layer: 0 where they are clean."""
        parts = [self._piece(p.form, latent) for p, latent in zip(pieces, x, strict=True)]
        h = torch.cat(parts, 1)
        now, past = self._placed(pieces, before, x[0])
        t = torch.zeros(len(x[0]), device=x[0].device) if t is None else t
        e, rope, mask = self.embed(t, t), self._rope(now, x[0]), self._mask(pieces, before.pieces, x[0])
        own = [h.shape[1]], self.text(cond), rope, mask, past, _both
        _, found = self.through(h, e, *own, turned=self.window is None)
        ends = [0, *accumulate(part.shape[1] for part in parts)]
        made = [  # copies: a view would keep the whole pass in memory for as long as one chunk of it is remembered
            [(k[:, i:j].clone(), v[:, i:j].clone()) for k, v in found] for i, j in pairwise(ends)
        ]
        return made if self.window is None or not self.window.int8 else [Int8.of(part) for part in made]

    def _check(self, z: Latent, cond: Cond, cache: Cache) -> None:
        if unknown := cond.keys() - {"text", "history"}:
            raise ConditionError(
                f"the {self.role} was given {sorted(unknown)} in its condition: it reads 'text' and 'history'"
            )
        if cache.pieces and "history" in cond:
            raise ConditionError("a history in the condition and one in the cache: a chunk has one or the other")
        past = cache.memory[0][0][0] if cache.pieces else None
        if past is not None and (len(past) != len(z) or past.shape[1] != self._tokens(cache.pieces[:1], z)):
            raise ValueError(
                f"z is {tuple(z.shape)}, but the cache is of another batch or size: it was made of {len(past)} videos"
            )

    def _training(self, history: Latent, z: Latent) -> tuple[Piece, ...]:
        """What stands in the sequence of a teacher-forced pass."""
        before = layout.finished(self.partition, history.shape[1])
        start = sum(before[: max(0, len(before) + 1 - self.full)])
        last, most = start + z.shape[1] - history.shape[1], max(self.partition)
        if not 1 <= last <= most:
            clean = history.shape[1] - start
            raise ValueError(
                f"z has {z.shape[1]} frames: after a history of {history.shape[1]} it must have {clean + 1} to "
                f"{clean + most}, the {clean} of it that are at full resolution and those of one chunk"
            )
        return layout.training((*before, last), self.full)

    def _assemble(self, pieces: tuple[Piece, ...], history: Latent, z: Latent) -> tuple[Tensor, int]:
        """The tokens of [compressed | clean | noisy], and how many of them are history."""
        old = sum(p.frames for p in pieces if p.form == COMPRESSED)
        parts = [(COMPRESSED, history[:, :old]), (CLEAN, history[:, old:]), (NOISY, z)]
        tokens = [self._piece(form, x) for form, x in parts if x.shape[1]]
        return torch.cat(tokens, 1), sum(part.shape[1] for part in tokens[:-1])

    def _piece(self, form: int, x: Latent) -> Tensor:
        if form != COMPRESSED:
            return self.tokens(x)
        if min(self._grid(form, x)) < 1:
            side = self.net.config.compressed_patch_size[-1]
            raise ValueError(f"latents of {x.shape[-2]} × {x.shape[-1]}: must be at least {side} × {side} to compress")
        return patchify(self.net.get_submodule(FAR_PATCH), x, self.dtype)

    def _grid(self, form: int, like: Latent) -> tuple[int, int]:
        """Rows and columns of tokens in a frame; what a compressed token would only half cover is left out."""
        side = self.net.config.compressed_patch_size[-1] if form == COMPRESSED else self.patch
        return like.shape[-2] // side, like.shape[-1] // side

    def _tokens(self, pieces: Sequence[Piece], like: Latent) -> int:
        return sum(p.frames * math.prod(self._grid(p.form, like)) for p in pieces)

    def _rope(self, pieces: Sequence[Piece], like: Latent) -> Rope:
        """A compressed token stands for n × n others: at the middle of their positions, n i + (n - 1) / 2.

        That is the mean of their rotations as complex numbers, at modulus one, as the reference has it.
        """
        device, found = like.device, []
        for p in pieces:
            n = self.net.config.compressed_patch_size[-1] // self.patch if p.form == COMPRESSED else 1
            rows, columns = (n * torch.arange(m, device=device) + (n - 1) / 2 for m in self._grid(p.form, like))
            frames = torch.arange(p.first, p.first + p.frames, device=device)
            found.append(rotation((frames, rows, columns), self.net.config.attention_head_dim))
        cos, sin = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cos, sin

    def _mask(self, queries: tuple[Piece, ...], before: tuple[Piece, ...], like: Latent) -> Mask:
        if len(queries) == 1:
            return None  # a chunk sees itself and what came before
        tokens = math.prod(self._grid(COMPRESSED, like)), math.prod(self._grid(CLEAN, like))
        keys, attention = (*before, *queries), self.attention
        if attention == "auto":
            attention = "dense" if self._tokens(keys, like) <= SMALL else "spans"
        if attention == "spans":
            return layout.spans(queries, keys, tokens)
        make = layout.block_mask if attention == "flex" else layout.dense_mask
        return make(queries, keys, tokens, like.device)


def _both(k: Tensor, v: Tensor) -> KeyValue:
    return k, v


def _alone(k: Tensor, v: Tensor) -> KeyValue:
    """Without the graph, and of nothing else's memory."""
    return k.detach().clone(), v.detach().clone()


def _picked(samples: Tensor, tokens: int, k: Tensor, v: Tensor) -> KeyValue:
    """Of some samples and the first tokens: copies, so that nothing else is held."""
    return k[:, :tokens].detach()[samples], v[:, :tokens].detach()[samples]
