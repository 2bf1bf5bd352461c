"""Step-Video-T2V, StepFun, arXiv:2502.10248: its network under the names of its published weights, and its sampler.

The sampler's time τ goes from noise, 0, to data, 1: z_τ = (1 - τ) ε + τ x, and the network predicts v = x - ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.normalization import AdaLayerNormSingle, RMSNorm
from torch import Tensor, nn
from torch.nn import functional as F

from .sampler import LatentPipeline

RESCALE = 1000.0
"""Of τ, before its sinusoids."""
BASE = 10_000.0
Turns = Sequence[tuple[Tensor, Tensor]]
"""cos and sin of the angles of frame, row and column, each [F H W, 1, n]; 2 n channels of a head are turned by each."""


def turns(size: tuple[int, int, int], head: int, device: torch.device, dtype: torch.dtype) -> Turns:
    """Half of a head's channels are turned by the frame, a quarter by the row, a quarter by the column.

    Within D channels by angles p · 10000^(-2k/D), k < D/2. In bfloat16 the angles are rounded to it, as where the
    published network runs.
    """
    grid = torch.meshgrid(*(torch.arange(n, device=device) for n in size), indexing="ij")
    made = []
    for place, channels in zip(grid, (head // 2, head // 4, head // 4), strict=True):
        frequency = BASE ** (-torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)
        angle = (place.reshape(-1, 1, 1) * frequency).to(dtype)
        made.append((angle.cos(), angle.sin()))
    return made


def turned(x: Tensor, by: Turns) -> Tensor:
    """x [B, S, heads, D]: of each part of a head, channel k with channel k + n."""
    made = []
    for part, (cos, sin) in zip(x.split([2 * cos.shape[-1] for cos, _ in by], -1), by, strict=True):
        a, b = part.chunk(2, -1)
        made += [a * cos - b * sin, b * cos + a * sin]
    return torch.cat(made, -1)


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, S, heads, D] each; mask [B, 1, 1, S'], of the keys that are heard. [B, S, heads · D]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """`wqkv` gives q, k and v of one head after another."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.wqkv, self.wo = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(head, eps=1e-6), RMSNorm(head, eps=1e-6)

    def forward(self, x: Tensor, by: Turns) -> Tensor:
        q, k, v = self.wqkv(x).unflatten(-1, (-1, 3, self.head)).unbind(-2)
        return self.wo(attended(turned(self.q_norm(q), by), turned(self.k_norm(k), by), v))


class CrossAttention(nn.Module):
    """`wkv` gives k and v of one head after another; neither is turned."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.wq, self.wkv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(head, eps=1e-6), RMSNorm(head, eps=1e-6)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        q = self.wq(x).unflatten(-1, (-1, self.head))
        k, v = self.wkv(text).unflatten(-1, (-1, 2, self.head)).unbind(-2)
        return self.wo(attended(self.q_norm(q), self.k_norm(k), v, mask))


class StepVideoBlock(nn.Module):
    """AdaLN-single, arXiv:2310.00426: shift, scale and gate of attention and of feed-forward are e + a table."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.attn1, self.attn2 = SelfAttention(width, head), CrossAttention(width, head)
        self.ff = FeedForward(width, activation_fn="gelu-approximate", bias=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor, e: Tensor, by: Turns) -> Tensor:
        """x [B, S, d], e [B, 6 d]."""
        moved = (self.scale_shift_table + e.unflatten(-1, (6, -1))).unsqueeze(2).unbind(1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = moved
        x = x + gate * self.attn1(self.norm1(x) * (1 + scale) + shift, by)
        x = x + self.attn2(x, text, mask)
        return x + gate_ff * self.ff(self.norm2(x) * (1 + scale_ff) + shift_ff)


class StepVideoModel(ModelMixin, ConfigMixin):
    """v of latents [B, F, 64, H, W], a token each, which all hear each other, and two texts.

    The arguments are those of the published config.json, of which dropout, norm_type and attention_type change nothing.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 48,
        attention_head_dim: int = 128,
        in_channels: int = 64,
        out_channels: int | None = 64,
        num_layers: int = 48,
        dropout: float = 0.0,
        patch_size: int = 1,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        use_additional_conditions: bool = False,
        caption_channels: Sequence[int] = (6144, 1024),
        attention_type: str = "parallel",
    ) -> None:
        super().__init__()
        width, (caption, clip) = num_attention_heads * attention_head_dim, caption_channels
        self.pos_embed = nn.ModuleDict({"proj": nn.Conv2d(in_channels, width, 1)})
        self.adaln_single = AdaLayerNormSingle(width)
        self.caption_norm = nn.LayerNorm(caption, eps=norm_eps, elementwise_affine=norm_elementwise_affine)
        self.caption_projection = PixArtAlphaTextProjection(caption, width)
        self.clip_projection = nn.Linear(clip, width)
        self.transformer_blocks = nn.ModuleList(StepVideoBlock(width, attention_head_dim) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width, eps=norm_eps, elementwise_affine=norm_elementwise_affine)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, out_channels or in_channels)
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_2: Tensor,
        encoder_attention_mask: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """timestep: τ [B]. encoder_hidden_states: of Step-LLM, [B, 320, 6144]; encoder_hidden_states_2: of
        Hunyuan-CLIP, [B, 77, 1024]; encoder_attention_mask: of both, CLIP's first, ones before zeros."""
        frames, _, height, width = hidden_states.shape[1:]
        x = self.pos_embed["proj"](hidden_states.flatten(0, 1)).unflatten(0, (-1, frames))
        x = x.permute(0, 1, 3, 4, 2).flatten(1, 3)  # frame by frame, row by row
        e6, e = self.adaln_single(RESCALE * timestep, hidden_dtype=x.dtype)
        text = self.caption_projection(self.caption_norm(encoder_hidden_states))
        text = torch.cat([self.clip_projection(encoder_hidden_states_2), text], 1)
        heard = encoder_attention_mask.sum(1, keepdim=True) > torch.arange(text.shape[1], device=x.device)
        by = turns((frames, height, width), self.config.attention_head_dim, x.device, x.dtype)
        for block in self.transformer_blocks:
            given = x, text, heard[:, None, None], e6, by
            again = torch.is_grad_enabled() and self.gradient_checkpointing
            x = self._gradient_checkpointing_func(block, *given) if again else block(*given)
        shift, scale = (self.scale_shift_table + e[:, None]).unsqueeze(2).unbind(1)
        v = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        v = v.unflatten(1, (frames, height, width)).permute(0, 1, 4, 2, 3)
        return {"x": v} if return_dict else v


class StepVideoPipeline(LatentPipeline):
    """The published sampler on latents, with texts that were made elsewhere: Step-LLM calls a private operator."""

    @torch.no_grad()
    def __call__(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        clip_embeds: Tensor,
        prompt_mask: Tensor,
        num_inference_steps: int = 50,
        output_type: str = "latent",
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """prompt_mask: of `prompt_embeds`; CLIP's tokens are all heard."""
        s, line = self.scheduler.config.shift, torch.linspace(1, 0, num_inference_steps + 1)
        told = {
            "encoder_hidden_states": prompt_embeds,
            "encoder_hidden_states_2": clip_embeds,
            "encoder_attention_mask": F.pad(prompt_mask, (clip_embeds.shape[1], 0), value=1),
        }
        return (self.walked(latents, 1 - s * line / (1 + (s - 1) * line), **told),)
