"""A transformer block of Wan, and rotary positions, over the modules of diffusers' blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from flowmap.context_parallel import Share

Rope: TypeAlias = tuple[Tensor, Tensor]  # (cos, sin), each [tokens, head_dim / 2], float32
Spans: TypeAlias = Sequence[tuple[int, tuple[tuple[int, int], ...]]]
"""Queries in a row: (how many, the ranges [from, to) of keys that they see)."""
Mask: TypeAlias = Tensor | BlockMask | Spans | None
"""Which key a query sees: [queries, keys] bool, flex attention's mask, ranges; None is all."""
Text: TypeAlias = tuple[Tensor, Tensor | None]  # embeddings [B, L, d], and what is added to their logits [1, L]
KeyValue: TypeAlias = tuple[Tensor, Tensor]  # of one layer, keys rotated: each [B, tokens, heads, head_dim]


class Block(nn.Module):
    """diffusers' `WanTransformerBlock` or `AnyFlowTransformerBlock`, its own modules under their own names.

    The equations are theirs. What they lack: a rotation of real numbers, a time a group of tokens without a copy of
    the modulation a token, a mask, and a history that is read and never written.
    """

    norm1: nn.Module
    attn1: nn.Module
    norm2: nn.Module
    attn2: nn.Module
    norm3: nn.Module
    ffn: nn.Module
    scale_shift_table: nn.Parameter  # [1, 6, d]

    def __init__(self, block: Any) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.scale_shift_table = block.scale_shift_table
        attn: Any
        for attn in (self.attn1, self.attn2):
            attn.norm_q, attn.norm_k = _torchs(attn.norm_q), _torchs(attn.norm_k)

    def forward(
        self,
        h: Tensor,
        e: Tensor,
        groups: Sequence[int],
        text: Text,
        rope: Rope,
        mask: Mask = None,
        past: Sequence[KeyValue] = (),
        share: Share | None = None,
        turned: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h [B, S, d]; e [B, G, 6, d], the modulation of groups of tokens of the sizes `groups`, which sum to S.

        past: keys and values that stand before this layer's own. Returns h and the layer's own keys and values.
        share: h, groups and rope are of this rank's tokens; mask, past and what is returned beside h of all of them,
        and of this rank's heads. turned: return the keys as they are rotated; else, of one rank alone, as before.
        """
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (self.scale_shift_table[:, None] + e.float()).unbind(2)

        x = _by_group(_affine, groups, (self.norm1(h.float()),), scale, shift).to(h.dtype)
        q, k, v = _heads(self.attn1, x, x)
        plain = k
        q, k = rotate(q, rope), rotate(k, rope)
        if share is not None:
            q, k, v = share.heads(q.to(v.dtype), k.to(v.dtype), v)
        keys, values = (torch.cat(parts, 1) for parts in zip(*past, (k, v), strict=True)) if past else (k, v)
        x = _attend(self.attn1, q, keys, values, mask, share)
        h = _by_group(torch.addcmul, groups, (h.float(), x), gate).to(h.dtype)

        x = self.norm2(h.float()).to(h.dtype)
        h = h + _attend(self.attn2, *_heads(self.attn2, x, text[0]), text[1])

        x = _by_group(_affine, groups, (self.norm3(h.float()),), scale_ff, shift_ff).to(h.dtype)
        x = self.ffn(x)
        h = _by_group(torch.addcmul, groups, (h.float(), x), gate_ff).to(h.dtype)
        return h, k if turned else plain, v


def _torchs(norm: nn.Module) -> nn.Module:
    """torch's RMSNorm for diffusers', with its weight: one kernel where there is one, rounded once."""
    from diffusers.models.normalization import RMSNorm

    if not isinstance(norm, RMSNorm) or norm.weight is None or norm.bias is not None:
        return norm
    made = nn.RMSNorm(norm.dim, norm.eps, device="meta")
    made.weight = norm.weight
    return made.train(norm.training)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


def _by_group(f: Callable[..., Tensor], groups: Sequence[int], xs: Sequence[Tensor], *values: Tensor) -> Tensor:
    """f(*(x's tokens of group g), its values [B, 1, d]), so that no value is copied for each token."""
    if len(groups) == 1:
        return f(*xs, *values)
    parts = zip(*(x.split(list(groups), dim=1) for x in xs), strict=True)
    return torch.cat([f(*part, *(value[:, i : i + 1] for value in values)) for i, part in enumerate(parts)], 1)


def _heads(attn: Any, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(source)), attn.to_v(source)
    heads = attn.heads, -1
    return q.view(*q.shape[:-1], *heads), k.view(*k.shape[:-1], *heads), v.view(*v.shape[:-1], *heads)


def _attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, share: Share | None = None) -> Tensor:
    q, k, v = (a.to(v.dtype).transpose(1, 2) for a in (q, k, v))
    if isinstance(mask, BlockMask):
        attention: Any = _compiled() if q.is_cuda else flex_attention
        h = attention(q, k, v, block_mask=mask)
    elif mask is None or isinstance(mask, Tensor):
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        h = _by_span(q, k, v, mask)
    h = h.transpose(1, 2) if share is None else share.back(h.transpose(1, 2))
    h = h.flatten(2)
    for layer in attn.to_out:
        h = layer(h)
    return h


def _by_span(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    """One call of any kernel for each run of queries, and no mask: [B, heads, tokens, dim]."""
    found, at = [], 0
    for queries, ranges in spans:
        keys, values = (torch.cat([a[:, :, i:j] for i, j in ranges], 2) for a in (k, v))
        found.append(F.scaled_dot_product_attention(q[:, :, at : at + queries], keys, values))
        at += queries
    return torch.cat(found, 2)


def _compiled() -> Callable[..., Tensor]:
    """Uncompiled, flex attention holds all logits; compiled once for the process."""
    global _flex
    if _flex is None:
        _flex = torch.compile(flex_attention)
    return _flex


_flex: Callable[..., Tensor] | None = None


def rotation(axes: Sequence[Tensor], head_dim: int) -> Rope:
    """Rotary positions along three axes: frames, rows, columns, each a vector of positions, whole or not; float32."""
    side = 2 * (head_dim // 6)
    dims = (head_dim - 2 * side, side, side)
    grids = torch.meshgrid(*(axis.double() for axis in axes), indexing="ij")
    device = axes[0].device
    frequencies = [1e4 ** -(torch.arange(0, d, 2, dtype=torch.float64, device=device) / d) for d in dims]
    angles = torch.cat([g.reshape(-1, 1) * f for g, f in zip(grids, frequencies, strict=True)], 1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """[B, tokens, heads, head_dim]: consecutive pairs as complex numbers times cos + i sin, in float32.

    Graphs have it in real numbers, which engines ask for: the same to rounding, and several times as slow uncompiled.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling():
        turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(*rope)[:, None]
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    a, b = pairs.unbind(-1)
    cos, sin = (part[:, None] for part in rope)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
