"""The adapter: diffusers' Wan2.1 and AnyFlow transformers as flow maps.

The forward pass is written out over the modules that both classes have, so that teacher and student are the same
function, bit for bit, where they have the same weights; times stay float32 up to the sinusoids; modulation is
computed once a sample (or frame), not once a token; attention is real-valued, so that it exports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowmap import FlowMap
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.time_embedding import mix

from .lora import activate, adapter_parameters, add_adapter
from .spec import Lora

TIME_SCALE = 1000.0  # the only place that knows it


class Wan21FlowMap(FlowMap):
    """u_θ of `net`, a `WanTransformer3DModel` (one time) or an `AnyFlowTransformer3DModel` (two).

    two_times: read r; a teacher or critic on a base that was lifted for the student reads t alone. lora: `net` is a
    frozen base that other roles use too, each with its own set of adapters; a frozen teacher uses none.
    cond["text"]: [B, tokens, text_dim], whose last position is padding unless all `text_length` are there.
    """

    def __init__(
        self,
        net: Any,
        role: Role,
        *,
        two_times: bool,
        lora: Lora | None = None,
        text_length: int = 512,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.role, self.two_times, self.lora = net, role, two_times, lora
        self.text_length, self.checkpointing = text_length, checkpointing
        self.adapter: str | None = None
        self.gamma, self.delta = net.config.get("gate_value", 0.0), net.config.get("deltatime_type", "r")
        self.mask = (None,) if "gate_value" in net.config else ()  # AnyFlow's blocks take one, Wan's do not
        for block in net.blocks:
            block.attn1.set_processor(SelfAttention())
            block.attn2.set_processor(CrossAttention())
        if role != "teacher":
            self.thaw()

    def thaw(self) -> None:
        if self.lora is None:
            self.net.float().requires_grad_(True)  # a small step would round to nothing in bfloat16
        elif self.adapter is None:
            self.adapter = self.role
            add_adapter(self.net, self.role, self.lora, times=self.role == "student")

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        net, (_, frames, _, height, width) = self.net, z.shape
        patch = net.config.patch_size[-1]
        tokens = (height // patch) * (width // patch)
        h = net.patch_embedding(z.to(net.patch_embedding.weight.dtype).transpose(1, 2)).flatten(2).transpose(1, 2)
        self._activate(net.condition_embedder)
        e = self._embed(t, r)
        e = e[:, None] if t.ndim == 1 else e
        modulation = net.condition_embedder.time_proj(F.silu(e).to(h.dtype)).unflatten(-1, (6, -1))
        if t.ndim == 2:
            e, modulation = (a.unsqueeze(2).expand(-1, -1, tokens, *a.shape[2:]).flatten(1, 2) for a in (e, modulation))
        text = net.condition_embedder.text_embedder(cond["text"].to(h.dtype)), self._bias(cond["text"].shape[1], h)
        head_dim = net.config.attention_head_dim
        rope = rotation(frames, height // patch, width // patch, head_dim, h.device)
        for block in net.blocks:
            h = self._block(block, h.contiguous(), text, modulation, rope)
        shift, scale = (net.scale_shift_table[:, None] + e[:, :, None]).unbind(2)
        h = net.proj_out((net.norm_out(h.float()) * (1 + scale) + shift).to(h.dtype))
        h = h.unflatten(1, (frames, height // patch, width // patch)).unflatten(-1, (patch, patch, -1))
        return h.permute(0, 1, 6, 2, 4, 3, 5).reshape(z.shape).to(z.dtype)

    def _embed(self, t: Time, r: Time) -> Tensor:
        """[..., d] float32: (1 - γ) e(t) + γ e'(r), or e(t)."""
        embedder = self.net.condition_embedder
        now = _time(embedder.timesteps_proj, embedder.time_embedder, t)
        if not self.two_times:
            return now
        then = _time(embedder.timesteps_proj, embedder.delta_embedder, r if self.delta == "r" else t - r)
        return mix(now, then, self.gamma)

    def _bias(self, kept: int, h: Tensor) -> Tensor | None:
        """[1, kept] added to the attention logits: log of how many positions of padding the last key stands for."""
        if kept == self.text_length:
            return None
        return F.pad(h.new_full((1, 1), math.log(self.text_length - kept + 1)), (kept - 1, 0))

    def _block(self, block: nn.Module, h: Tensor, text: Any, modulation: Tensor, rope: Any) -> Tensor:
        def run(h: Tensor, modulation: Tensor) -> Tensor:
            self._activate(block)  # inside, so that recomputation sees the adapter that the forward pass saw
            return block(h, text, modulation, rope, *self.mask)

        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, h, modulation, use_reentrant=False)
        return run(h, modulation)

    def _activate(self, module: nn.Module) -> None:
        if self.lora is not None:
            activate(module, self.adapter)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.net.blocks)

    def trained(self) -> Mapping[str, nn.Parameter]:
        if self.lora is not None:
            return {} if self.adapter is None else adapter_parameters(self.net, self.adapter)
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}


def _time(sinusoids: nn.Module, embedder: Any, t: Time) -> Tensor:
    """The sinusoids in float32 or wider, the embedder in its own dtype, the result float32."""
    features = sinusoids(t.flatten() * TIME_SCALE).unflatten(0, t.shape)
    dtype = next(embedder.parameters()).dtype
    return embedder(features.to(dtype)).float()


def rotation(frames: int, height: int, width: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [frames · height · width, head_dim / 2], float32: rotary positions along three axes."""
    side = 2 * (head_dim // 6)
    dims = (head_dim - 2 * side, side, side)
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in (frames, height, width)]
    grids = torch.meshgrid(*axes, indexing="ij")
    frequencies = [1e4 ** -(torch.arange(0, d, 2, dtype=torch.float64, device=device) / d) for d in dims]
    angles = torch.cat([g.reshape(-1, 1) * f for g, f in zip(grids, frequencies, strict=True)], 1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """[B, tokens, heads, head_dim]: consecutive pairs as complex numbers times cos + i sin, in float32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = (part[:, None] for part in rope)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def _heads(attn: Any, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(source)), attn.to_v(source)
    return q.unflatten(-1, (attn.heads, -1)), k.unflatten(-1, (attn.heads, -1)), v.unflatten(-1, (attn.heads, -1))


def _attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return attn.to_out[1](attn.to_out[0](h.transpose(1, 2).flatten(2).to(q.dtype)))


class SelfAttention:
    """Attention among all tokens, rotary positions as real numbers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        q, k, v = _heads(attn, hidden_states, hidden_states)
        return _attend(attn, rotate(q, rotary_emb), rotate(k, rotary_emb), v)


class CrossAttention:
    """Attention to the text, which comes with a bias for its padding: (tokens [B, L, d], [1, L] or None)."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any, *unused: Any) -> Tensor:
        text, bias = encoder_hidden_states
        q, k, v = _heads(attn, hidden_states, text)
        return _attend(attn, q, k, v, bias)
