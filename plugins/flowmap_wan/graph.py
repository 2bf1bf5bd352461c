"""The networks of the family as functions of tensors alone, for engines: nothing complex, nothing in float64.

Times in diffusers' units, 0 to 1000, a time a frame [B, F].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from flowmap_lora.masters import plain
from torch import Tensor, nn
from torch.nn import functional as F

from flowmap._types import Latent, Time
from flowmap.time_embedding import mix

from .block import Block, Rope, Text, rotate
from .checkpoints import fused
from .network import WanFlowMap

POSITIONS = 1024
"""Rows of the rotary tables: the most frames, and rows or columns of tokens."""
Attention: TypeAlias = Literal["sdpa", "explicit"]
"""One operator, or product, softmax, product, for engines that do not know the operator."""


def rotary_tables(head_dim: int) -> list[tuple[Tensor, Tensor]]:
    """(cos, sin) by axis, frames, rows, columns: each [POSITIONS, d / 2] float32, made in float64."""
    side = 2 * (head_dim // 6)
    positions, found = torch.arange(POSITIONS, dtype=torch.float64), []
    for d in (head_dim - 2 * side, side, side):
        angles = positions[:, None] * 1e4 ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
        found.append((angles.cos().float(), angles.sin().float()))
    return found


class WanGraph(nn.Module):
    """The parts of `flowmap_wan.network.WanFlowMap`, without adapters, one broadcast in place of a loop over frames."""

    def __init__(self, u: WanFlowMap, attention: Attention = "sdpa") -> None:
        super().__init__()
        if not u.two_times:
            raise ValueError(f"the {u.role} reads one time alone: only a student is exported")
        net: Any = plain(u.net) if u.lora is None else fused(u)
        self.config, self.gamma, self.delta, self.attention = dict(net.config), u.gamma, u.delta, attention
        self.text_length = u.text_length
        self.patch, self.heads = u.patch, int(net.config.num_attention_heads)
        self.patch_embedding, self.condition = net.patch_embedding, net.condition_embedder
        self.blocks = nn.ModuleList(b if isinstance(b, Block) else Block(b) for b in net.blocks)
        self.norm_out, self.proj_out, self.scale_shift_table = net.norm_out, net.proj_out, net.scale_shift_table
        for axis, (cos, sin) in zip("fhw", rotary_tables(int(net.config.attention_head_dim)), strict=True):
            self.register_buffer(f"cos_{axis}", cos.to(net.device), persistent=True)
            self.register_buffer(f"sin_{axis}", sin.to(net.device), persistent=True)
        self.requires_grad_(False)

    def tokens(self, z: Latent, embedding: nn.Module) -> Tensor:
        """[B, F, C, H, W] -> [B, F · rows · columns, d]."""
        dtype = self.patch_embedding.weight.dtype
        own = next(embedding.parameters()).dtype
        return embedding(z.to(own).transpose(1, 2)).flatten(2).transpose(1, 2).to(dtype)

    def embed(self, timestep: Time, r_timestep: Time) -> tuple[Tensor, Tensor]:
        """[B, F] twice -> the embedding [B, F, d] float32, and the modulation [B, F, 6, d] that follows from it."""
        times = self.condition
        now = self._time(times.time_embedder, timestep)
        then = self._time(times.delta_embedder, r_timestep if self.delta == "r" else timestep - r_timestep)
        e = mix(now, then, self.gamma)
        dtype = self.patch_embedding.weight.dtype
        return e, times.time_proj(F.silu(e).to(dtype)).unflatten(-1, (6, -1)).float()

    def _time(self, embedder: Any, t: Time) -> Tensor:
        features = self.condition.timesteps_proj(t.float().flatten())
        found = embedder(features.to(next(embedder.parameters()).dtype)).float()
        return found.reshape(*t.shape, -1)

    def text(self, embeddings: Tensor) -> Text:
        """As in `WanFlowMap`: what is missing of `text_length` counts as padding like the last position."""
        dtype, kept = self.patch_embedding.weight.dtype, embeddings.shape[1]
        embedded = self.condition.text_embedder(embeddings.to(dtype))
        if isinstance(kept, int) and kept == self.text_length:
            return embedded, None
        count = torch.ones_like(embeddings[:1, :, 0], dtype=torch.float32).sum(1, keepdim=True)  # kept, as a tensor
        return embedded, F.pad((self.text_length + 1 - count).log().to(dtype), (kept - 1, 0))

    def rope(self, frames: Sequence[Tensor], rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Rope:
        """The tables' rows (cos, sin) of each axis, [n, d], at every token: each [tokens, head_dim / 2]."""
        size = (frames[0].shape[0], rows[0].shape[0], columns[0].shape[0])
        cos, sin = (
            torch.cat(
                [
                    f[:, None, None].expand(*size, f.shape[1]),
                    h[None, :, None].expand(*size, h.shape[1]),
                    w[None, None].expand(*size, w.shape[1]),
                ],
                -1,
            ).flatten(0, 2)
            for f, h, w in zip(frames, rows, columns, strict=True)
        )
        return cos, sin

    def table(self, axis: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"cos_{axis}"), self.get_buffer(f"sin_{axis}")

    def block(
        self,
        block: Block,
        h: Tensor,
        modulation: Tensor,
        size: int,
        text: Text,
        rope: Rope,
        past: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`Block.forward` with groups of `size` tokens; past: keys and values before these, [B, S, heads, head_dim]."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (block.scale_shift_table[:, None] + modulation).unbind(2)

        x = affine(block.norm1(h.float()), scale, shift, size).to(h.dtype)
        q, k, v = self.project(block.attn1, x, x)
        q, k = rotate(q, rope), rotate(k, rope)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], 1), torch.cat([past[1], v], 1))
        h = (h.float() + gated(self.attend(block.attn1, q, keys, values, mask), gate, size)).to(h.dtype)

        x = block.norm2(h.float()).to(h.dtype)
        h = h + self.attend(block.attn2, *self.project(block.attn2, x, text[0]), text[1])

        x = affine(block.norm3(h.float()), scale_ff, shift_ff, size).to(h.dtype)
        h = (h.float() + gated(block.ffn(x).float(), gate_ff, size)).to(h.dtype)
        return h, k, v

    def project(self, attn: Any, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(source)), attn.to_v(source)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        return q, k, v

    def attend(self, attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (a.to(v.dtype).transpose(1, 2) for a in (q, k, v))
        if self.attention == "sdpa":
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if mask is not None:
                low = torch.finfo(logits.dtype).min
                logits = logits.masked_fill(~mask, low) if mask.dtype == torch.bool else logits + mask
            h = logits.softmax(-1) @ v
        return attn.to_out[1](attn.to_out[0](h.transpose(1, 2).flatten(2)))

    def latent(self, h: Tensor, e: Tensor, like: Latent) -> Latent:
        """The head: tokens [B, F · rows · columns, d] to a latent like `like`, in its dtype."""
        batch, frames, channels, height, width = like.shape
        shift, scale = (self.scale_shift_table[:, None] + e[:, :, None]).unbind(2)
        p = self.patch
        h = self.proj_out(affine(self.norm_out(h.float()), scale, shift, (height // p) * (width // p)).to(h.dtype))
        h = h.reshape(batch, frames, height // p, width // p, p, p, channels)
        return h.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frames, channels, height, width).to(like.dtype)


class OneChunk(WanGraph):
    """u(z, t, r | text), all frames at once."""

    def forward(self, z: Latent, timestep: Time, r_timestep: Time, text: Tensor) -> Latent:
        same_sizes(z, timestep, r_timestep, text)
        frames, rows, columns = z.shape[1], z.shape[3] // self.patch, z.shape[4] // self.patch
        e, modulation = self.embed(timestep, r_timestep)
        axes = ([part[:n] for part in self.table(axis)] for axis, n in zip("fhw", (frames, rows, columns), strict=True))
        rope, context = self.rope(*axes), self.text(text)
        h = self.tokens(z, self.patch_embedding)
        for block in self.blocks:
            h, _, _ = self.block(block, h, modulation, rows * columns, context, rope)  # type: ignore[arg-type]
        return self.latent(h, e, z)


def same_sizes(z: Latent, timestep: Time, r_timestep: Time, text: Tensor) -> None:
    """Tell the tracer, which has a symbol for each dimension of each input, that they are the same ones."""
    for t in (timestep, r_timestep):
        torch._check(t.shape[0] == z.shape[0])
        torch._check(t.shape[1] == z.shape[1])
    torch._check(text.shape[0] == z.shape[0])


def affine(x: Tensor, scale: Tensor, shift: Tensor, size: int) -> Tensor:
    """x [B, G · size, d] times 1 + scale, plus shift, both [B, G, d], of G groups of `size` tokens."""
    grouped = x.reshape(x.shape[0], scale.shape[1], size, x.shape[2])
    return (grouped * (1 + scale[:, :, None]) + shift[:, :, None]).reshape(x.shape)


def gated(x: Tensor, gate: Tensor, size: int) -> Tensor:
    return (x.reshape(x.shape[0], gate.shape[1], size, x.shape[2]) * gate[:, :, None]).reshape(x.shape)
