"""A causal student that was exported, in use: chunk after chunk, by `flowmap.sample` or in an `AnyFlowFARPipeline`."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any, cast

import torch
from attrs import frozen
from flowmap_wan.block import KeyValue, rotate, rotation
from flowmap_wan.network import TIME_SCALE
from torch import Tensor, nn

from flowmap import FlowMap
from flowmap._types import Cond, Latent, Time
from flowmap.export.errors import ExportError
from flowmap.export.runner import Checked, fitted
from flowmap.model import ConditionError
from flowmap.window import Window

from . import history, layout
from .graph import EMPTY
from .history import Cache, extended
from .layout import COMPRESSED, Piece


@frozen(eq=False)
class Turned:
    """Keys and values of a piece, [layers, 2, B, S, heads, head_dim], whose keys are rotated as of frame `first`."""

    memory: Tensor
    first: int

    def at(self, first: int) -> Tensor:
        """As of another frame: along the frames a rotation by the difference, R(p) k = R(p - q) R(q) k."""
        if first == self.first:
            return self.memory
        by = torch.tensor([first - self.first], device=self.memory.device)
        rope = rotation((by, by.new_zeros(1), by.new_zeros(1)), self.memory.shape[-1])
        keys = rotate(self.memory[:, 0].flatten(0, 1), rope).view_as(self.memory[:, 0])
        return torch.stack([keys, self.memory[:, 1]], 1)


class ExportedFar(FlowMap):
    """u(z, t, r | c, history) and its history, of the three built graphs: what `FarFlowMap` is to `flowmap.sample`.

    With a window the graphs see histories of one size for ever: where an export has fixed shapes, so has its cache.
    """

    def __init__(self, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> None:
        super().__init__()
        self.calls, self.partition, self.full = dict(calls), tuple(config["partition"]), int(config["full"])
        self.most, self.side = int(config["frames"]), int(config["side"])
        self.patch = int(config["patch_size"][-1])
        built = calls["step"].built
        kv = next(i for i in built.inputs if i.name == "kv")
        self.layers, self.heads, self.width = (int(kv.dims[k]) for k in (0, 4, 5))
        self.kind, self.places = kv.dtype, built.ranges["past"].least
        self.positions, self.window = built.ranges["text"], cast("Window | None", None)

    def chunks(self, frames: int) -> tuple[int, ...]:
        if self.window is None and frames > self.most:
            raise ValueError(f"{frames} latent frames: this network has rotary positions for at most {self.most}")
        return layout.chunks(self.partition, frames)

    def bound(self, window: Window) -> None:
        history.check(window, self.partition, self.full, self.most)
        if window.int8:
            raise ValueError(
                "Window.int8 = True: an export's graphs give and take keys in their own type: must be False"
            )
        ranges, done = self.calls["step"].built.ranges, window.chunks
        sizes = layout.chunks(self.partition, sum(self.partition) + done * max(self.partition))[: done + 1]
        dense, sparse = ((ranges["height"].least // n) * (ranges["width"].least // n) for n in (self.patch, self.side))
        old = max(0, done - self.full + 1)
        if (needed := sparse * sum(sizes[:old]) + dense * sum(sizes[old:done])) > (most := ranges["past"].most):
            raise ValueError(
                f"{window}: remembers {needed} tokens at least, this export has places for {most}: must be of fewer "
                "chunks, or the export for videos of more frames"
            )
        self.window = window

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache | None = None) -> Latent:
        at, to = ((s[:, None].expand(-1, z.shape[1]) if s.ndim == 1 else s).float() * TIME_SCALE for s in (t, r))
        return self.step(z, at, to, cond, cache)

    def step(self, z: Latent, timestep: Time, r_timestep: Time, cond: Cond, cache: Cache | None) -> Latent:
        """`forward` in diffusers' units, a time a frame."""
        cache, frames = cache or Cache(), z.shape[1]
        (own,), before = self._placed((Piece(layout.NOISY, cache.chunks, cache.frames, frames),), cache)
        kv, past = self._history(cache, before, z)
        at = self._frames((own,), z)
        return self.calls["step"](z.float(), timestep, r_timestep, self._text(cond), kv, past, at).to(z.dtype)

    def extend(self, cache: Cache | None, x: Latent, cond: Cond) -> Cache:
        whole = extended(cache or Cache(), x, self.full, partial(self._encode, cond=cond))
        return whole if self.window is None else history.kept(whole, self.window)

    def _placed(self, pieces: tuple[Piece, ...], before: Cache) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """Chunks, and those before them, at the positions that they have in the window."""
        if self.window is None:
            return pieces, before.pieces
        n, now = len(before.pieces), history.placed((*before.pieces, *pieces), self.window, sum(self.partition))
        return now[n:], now[:n]

    def _encode(
        self, pieces: tuple[Piece, ...], x: Sequence[Latent], before: Cache, cond: Cond
    ) -> Sequence[Sequence[KeyValue]]:
        pieces, now = self._placed(pieces, before)
        text, (kv, past) = self._text(cond), self._history(before, now, x[0])
        if len(pieces) == 1:
            name = "compress" if pieces[0].form == COMPRESSED else "encode"
            found = self.calls[name](x[0].float(), text, kv, past, self._frames(pieces, x[0]))
        else:
            old, new = pieces[:1], pieces[1:]
            latents = x[0].float(), torch.cat([part.float() for part in x[1:]], 1)
            ids = [self._frames(part, x[0]) for part in (old, new)] + [self._chunks(part, x[0]) for part in (old, new)]
            found = self.calls["compress"](*latents, text, kv, past, *ids)
        ends = [0, *accumulate(self._tokens(p, x[0]) for p in pieces)]
        made = [Turned(found[:, :, :, i:j].clone(), p.first) for p, (i, j) in zip(pieces, pairwise(ends), strict=True)]
        return [cast("Sequence[KeyValue]", one) for one in made]  # nobody but `_history` reads them

    def _history(self, cache: Cache, now: Sequence[Piece], like: Latent) -> tuple[Tensor, Tensor]:
        """Keys and values of all pieces, where they stand now, and the chunk of each place, filled with empty ones up
        to the least."""
        memory = [cast(Turned, m).at(p.first) for m, p in zip(cache.memory, now, strict=True)]
        ids = [
            like.new_full((m.shape[3],), p.chunk, dtype=torch.int64) for m, p in zip(memory, cache.pieces, strict=True)
        ]
        if (short := self.places - sum(len(i) for i in ids)) > 0:
            shape = self.layers, 2, len(like), short, self.heads, self.width
            memory.append(like.new_zeros(shape, dtype=self.kind))
            ids.append(like.new_full((short,), EMPTY, dtype=torch.int64))
        return torch.cat(memory, 3), torch.cat(ids)

    def _text(self, cond: Cond) -> Tensor:
        if unknown := cond.keys() - {"text"}:
            raise ConditionError(f"the export was given {sorted(unknown)} in its condition: it reads 'text' alone")
        return fitted(cond["text"].float(), self.positions)

    def _frames(self, pieces: Sequence[Piece], like: Latent) -> Tensor:
        return torch.cat([torch.arange(p.first, p.first + p.frames, device=like.device) for p in pieces])

    def _chunks(self, pieces: Sequence[Piece], like: Latent) -> Tensor:
        return torch.cat([like.new_full((p.frames,), p.chunk, dtype=torch.int64) for p in pieces])

    def _tokens(self, piece: Piece, like: Latent) -> int:
        side = self.side if piece.form == COMPRESSED else self.patch
        return piece.frames * (like.shape[-2] // side) * (like.shape[-1] // side)


class FarTransformer(nn.Module):
    """It with the call of diffusers' `AnyFlowFARTransformer3DModel`, as `pipe.transformer`.

    The history is kept in the pipeline's own `kv_cache`, beside the places that it reserves there, which stay unused.
    Unlike diffusers' own it attends to no padding.
    """

    def __init__(self, u: ExportedFar, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.u, self.config = u, SimpleNamespace(**config)

    @property
    def dtype(self) -> torch.dtype:
        """Of latents and text; what is inside may be narrower."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self.u.calls["step"].device

    def build_attention_mask(self, **asked: Any) -> None:
        """None: the graphs have theirs."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        r_timestep: Tensor,
        encoder_hidden_states: Tensor,
        chunk_partition: Sequence[int],
        kv_cache: MutableMapping[Any, Any] | None = None,
        kv_cache_flag: Mapping[str, Any] | None = None,
        attention_mask: None = None,
        attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """(the velocity of a chunk, kv_cache); or, where a chunk is to be remembered, (None, kv_cache)."""
        if attention_kwargs:
            raise ExportError(f"attention_kwargs = {dict(attention_kwargs)}: an export takes none")
        if kv_cache is None or kv_cache_flag is None:
            raise ExportError("use_kv_cache = False: an export makes chunks with their history alone")
        cond, cache = {"text": encoder_hidden_states}, kv_cache.get("flowmap")
        if kv_cache_flag["is_cache_step"]:
            kv_cache["flowmap"] = self.u.extend(cache, hidden_states[:, -chunk_partition[-1] :], cond)
            return None, kv_cache
        return self.u.step(hidden_states, timestep.float(), r_timestep.float(), cond, cache), kv_cache
