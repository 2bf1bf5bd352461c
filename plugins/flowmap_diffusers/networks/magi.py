"""MAGI-1, Sand AI, arXiv:2505.13211: the network of its 4.5B, chunk after chunk, under the names of its weights.

Its time τ goes from noise, 0, to data, 1, every chunk of frames has its own, and v = x - ε. Tokens of a chunk hear it
and some chunks before it, never a later one. Finished chunks stand there clean, at τ = `clean_t`, and hear no text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from .sampler import LatentPipeline

RESCALE = 1000.0
SQUARE = 16
"""Rows and columns of tokens of the picture that positions are scaled to."""
PARTS = 8
"""Groups of heads in which both attentions are interleaved before their projection."""


@frozen(eq=False)
class Memory:
    """Keys and values by layer of the last `kept` frames, of finished chunks; frames: all that there were."""

    layers: tuple[tuple[Tensor, ...], ...]
    kept: int
    frames: int


Spans = Sequence[tuple[int, int, int, int]]
"""The tokens of each chunk, from and to, and the keys that they hear, from and to."""


class LayerNorm(nn.LayerNorm):
    """Its weight is kept less 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


def heads(x: Tensor, width: int) -> Tensor:
    """[B, S, n · width] -> [B, n, S, width]."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, S, n · width]; several heads of queries share one of keys and values."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2).flatten(2)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """x [B, n, S, width]; of its first 2 m channels k with k + m, by angle [S, m]; the others stay."""
    m = angle.shape[-1]
    a, b, rest = x[..., :m], x[..., m : 2 * m], x[..., 2 * m :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, d: int, q: int, kv: int, width: int, text: int, eps: float) -> None:
        super().__init__()
        self.width = width
        sizes = {"q": q, "qx": q, "k": kv, "v": kv}
        self.linear_qkv = nn.ModuleDict({name: nn.Linear(d, n, bias=False) for name, n in sizes.items()})
        self.linear_qkv["layer_norm"] = nn.LayerNorm(d, eps)
        self.linear_kv_xattn, self.linear_proj = nn.Linear(text, 2 * kv, bias=False), nn.Linear(2 * q, d, bias=False)
        self.q_layernorm, self.k_layernorm = LayerNorm(width, eps), LayerNorm(width, eps)
        self.q_layernorm_xattn, self.k_layernorm_xattn = LayerNorm(width, eps), LayerNorm(width, eps)

    def keys(self, h: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        k = turned(self.k_layernorm(heads(self.linear_qkv["k"](h), self.width)), angle)
        return k, heads(self.linear_qkv["v"](h), self.width)

    def forward(
        self, h: Tensor, own: Any, past: Any, angle: Tensor, hears: Spans, text: Tensor, mask: Tensor
    ) -> Tensor:
        """text: for the last tokens alone, as many as `mask` [B, 1, S', L] has rows."""
        q = turned(self.q_layernorm(heads(self.linear_qkv["q"](h), self.width)), angle)
        k, v = own if past is None else (torch.cat(pair, 2) for pair in zip(past, own, strict=True))
        core = torch.cat([attended(q[:, :, a:b], k[:, :, c:d], v[:, :, c:d]) for a, b, c, d in hears], 1)
        kx, vx = self.linear_kv_xattn(text).unflatten(-1, (-1, 2, self.width)).transpose(1, 3).unbind(1)
        qx = self.q_layernorm_xattn(heads(self.linear_qkv["qx"](h[:, h.shape[1] - mask.shape[2] :]), self.width))
        cross = attended(qx, self.k_layernorm_xattn(kx), vx, mask)
        cross = F.pad(cross, (0, 0, h.shape[1] - mask.shape[2], 0))
        both = torch.stack([core, cross], 2).unflatten(-1, (PARTS, -1)).transpose(2, 3)
        return self.linear_proj(both.flatten(2))


class Block(nn.Module):
    def __init__(self, d: int, q: int, kv: int, width: int, text: int, ffn: int, told: int, eps: float) -> None:
        super().__init__()
        self.ada_modulate_layer = nn.ModuleDict({"proj": nn.Sequential(nn.Linear(told, 2 * d))})
        self.self_attention = Attention(d, q, kv, width, text, eps)
        self.self_attn_post_norm, self.mlp_post_norm = LayerNorm(d, eps), LayerNorm(d, eps)
        named = {"linear_fc1": nn.Linear(d, ffn, bias=False), "linear_fc2": nn.Linear(ffn, d, bias=False)}
        self.mlp = nn.ModuleDict({"layer_norm": nn.LayerNorm(d, eps), **named})

    def forward(
        self, x: Tensor, told: Tensor, past: Any, angle: Tensor, hears: Spans, text: Tensor, mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, S, d]; told: what a token is told of its time and prompt. With its keys and values."""
        gate, gate_ff = self.ada_modulate_layer["proj"](F.silu(told)).tanh().chunk(2, -1)
        h = self.self_attention.linear_qkv["layer_norm"](x)
        own = self.self_attention.keys(h, angle)
        x = x + self.self_attn_post_norm(gate * self.self_attention(h, own, past, angle, hears, text, mask))
        h = F.gelu(self.mlp["linear_fc1"](self.mlp["layer_norm"](x)))
        return x + self.mlp_post_norm(gate_ff * self.mlp["linear_fc2"](h)), own


class MagiModel(ModelMixin, ConfigMixin):
    """v of latents [B, F, C, H, W]. The arguments are the published model_config's, and those of sampling that say what
    a chunk hears: noise_range chunks, itself among them; a clean one clean_range."""

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ("rope",)

    @register_to_config
    def __init__(
        self,
        num_layers: int = 34,
        hidden_size: int = 3072,
        ffn_hidden_size: int = 12288,
        num_attention_heads: int = 24,
        num_query_groups: int = 8,
        kv_channels: int = 128,
        layernorm_epsilon: float = 1e-6,
        patch_size: int = 2,
        t_patch_size: int = 1,
        in_channels: int = 16,
        out_channels: int = 16,
        cond_hidden_ratio: float = 0.25,
        caption_channels: int = 4096,
        caption_max_length: int = 800,
        xattn_cond_hidden_ratio: float = 1.0,
        gated_linear_unit: bool = False,
        half_channel_vae: bool = False,
        apply_layernorm_1p: bool = True,
        x_rescale_factor: float = 1,
        chunk_width: int = 6,
        noise_range: int = 5,
        clean_range: int = 1,
        clean_t: float = 0.9999,
    ) -> None:
        super().__init__()
        d, p, eps = hidden_size, patch_size, layernorm_epsilon
        told, text = int(d * cond_hidden_ratio), int(d * xattn_cond_hidden_ratio)
        self.x_embedder = nn.Conv3d(in_channels, d, (1, p, p), (1, p, p), bias=False)
        mlp = nn.Sequential(nn.Linear(256, told), nn.SiLU(), nn.Linear(told, told))
        self.t_embedder = nn.ModuleDict({"time_proj": Timesteps(256, True, 0), "mlp": mlp})
        self.y_embedder = nn.ModuleDict({
            "y_proj_xattn": nn.Sequential(nn.Linear(caption_channels, text), nn.SiLU()),
            "y_proj_adaln": nn.Sequential(nn.Linear(caption_channels, told)),
        })  # fmt: skip
        self.y_embedder.register_parameter(
            "null_caption_embedding", nn.Parameter(torch.zeros(caption_max_length, caption_channels))
        )
        self.rope = nn.ParameterDict({"bands": 10_000.0 ** -(torch.arange(kv_channels // 8) / (kv_channels // 8))})
        sizes = d, num_attention_heads * kv_channels, num_query_groups * kv_channels, kv_channels, text
        layers = nn.ModuleList(Block(*sizes, ffn_hidden_size, told, eps) for _ in range(num_layers))
        self.videodit_blocks = nn.ModuleDict({"layers": layers, "final_layernorm": LayerNorm(d, eps)})
        self.final_linear = nn.ModuleDict({"linear": nn.Linear(d, p * p * out_channels, bias=False)})
        self.gradient_checkpointing = False

    def angles(self, first: int, frames: int, rows: int, columns: int) -> Tensor:
        """[F H W, 3 n]: of frame, row, column, these about the middle, scaled to a picture of 16 × 16 tokens' area."""
        device, bands = self.x_embedder.weight.device, self.rope["bands"].float()
        scale = math.sqrt(rows * columns) / SQUARE
        places = [torch.arange(first, first + frames, device=device, dtype=torch.float32)]
        for n in (rows, columns):
            middle = torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2
            places.append(middle if n == 1 else middle * ((n / scale - 1) / (n - 1)))
        grid = torch.stack(torch.meshgrid(*places, indexing="ij"), -1)
        return (grid[..., None] * bands).reshape(frames * rows * columns, -1)

    def hears(self, first: int, frames: int, clean: int, oldest: int, tokens: int) -> Spans:
        """Of frames first to first + frames, of which `clean` are finished, with keys from frame `oldest` on."""
        width, found = self.config.chunk_width, []
        for start in range(first, first + frames, width):
            end = min(start + width, first + frames)
            reach = self.config.clean_range if start < first + clean else self.config.noise_range
            least = max(oldest, start - (reach - 1) * width)
            found.append(
                (tokens * (start - first), tokens * (end - first), tokens * (least - oldest), tokens * (end - oldest))
            )
        return found

    def told(self, timestep: Tensor, prompted: Tensor) -> Tensor:
        """[B, 1, c]: of τ [B] and whether there is a prompt [B], 1 or 0."""
        null: Any = self.y_embedder.null_caption_embedding
        y = null[-1] + prompted[:, None].to(null.dtype) * (null[-2] - null[-1])
        y = self.y_embedder["y_proj_adaln"](y)
        waves = self.t_embedder["time_proj"](RESCALE * timestep).to(y.dtype)
        return (self.t_embedder["mlp"](waves) + y)[:, None]

    def through(
        self, x: Tensor, first: int, clean: int, told: Tensor, text: Tensor, mask: Tensor, memory: Memory | None
    ) -> tuple[Tensor, tuple[tuple[Tensor, ...], ...]]:
        """x [B, F, C, H, W] from frame `first` on, of which `clean` are finished; told [B, F, c], text [B, L, c], mask
        [B, L]. With keys and values by layer."""
        p, frames, oldest = self.config.patch_size, x.shape[1], first if memory is None else first - memory.kept
        tokens = self.x_embedder(x.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        each = tokens.shape[2]
        angle = self.angles(first, frames, x.shape[-2] // p, x.shape[-1] // p)
        h, told = tokens.flatten(1, 2), told.repeat_interleave(each, 1)
        heard = mask[:, None, None].expand(-1, 1, (frames - clean) * each, -1).bool()
        hears, found, layers = (
            self.hears(first, frames, clean, oldest, each),
            [],
            self.videodit_blocks["layers"].children(),
        )
        for k, block in enumerate(layers):
            given = h, told, None if memory is None else memory.layers[k], angle, hears, text, heard
            again = torch.is_grad_enabled() and self.gradient_checkpointing
            h, own = self._gradient_checkpointing_func(block, *given) if again else block(*given)
            found.append(own)
        return h, tuple(found)

    def remember(self, x: Tensor, timestep: Tensor, memory: Memory | None, recent: int | None = None) -> Memory:
        """The memory with the finished chunk x: later ones hear noise_range - 1 chunks of it, at most `recent`."""
        first, frames = 0 if memory is None else memory.frames, x.shape[1]
        told = self.told(timestep, torch.zeros_like(timestep)).expand(-1, frames, -1)
        none = x.new_zeros(len(x), 1, int(self.config.hidden_size * self.config.xattn_cond_hidden_ratio))
        h, new = self.through(x, first, frames, told, none, none[..., 0], memory)
        if memory is None:
            return Memory(new, frames, frames)
        most = min(self.config.noise_range - 1, recent or self.config.noise_range)
        kept = min(memory.kept + frames, most * self.config.chunk_width)
        gone = (memory.kept + frames - kept) * (h.shape[1] // frames)
        both = zip(memory.layers, new, strict=True)
        layers = (tuple(torch.cat(pair, 2)[:, :, gone:] for pair in zip(*two, strict=True)) for two in both)
        return Memory(tuple(layers), kept, first + frames)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        prompted: Tensor,
        history: Tensor | None = None,
        memory: Memory | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The chunks of hidden_states, all at τ = timestep [B], after those of `history`, clean latents, or `memory`.

        encoder_hidden_states: of T5, [B, 800, 4096]; encoder_attention_mask [B, 800]; prompted [B]: 0 without a prompt.
        """
        x, frames, clean = hidden_states, hidden_states.shape[1], 0
        first, told = 0 if memory is None else memory.frames, self.told(timestep, prompted).expand(-1, frames, -1)
        if history is not None:
            if history.shape[1] % (width := self.config.chunk_width):
                raise ValueError(
                    f"a history of {history.shape[1]} frames ends inside a chunk: must be a multiple of {width}"
                )
            if self.config.clean_range == 1:  # what nobody hears
                first = max(0, history.shape[1] - (self.config.noise_range - 1) * width)
            clean, x = history.shape[1] - first, torch.cat([history[:, first:], x], 1)
            done = torch.full_like(timestep, self.config.clean_t)
            told = torch.cat([self.told(done, torch.zeros_like(done)).expand(-1, clean, -1), told], 1)
        text = self.y_embedder["y_proj_xattn"](encoder_hidden_states)
        h, _ = self.through(x, first, clean, told, text, encoder_attention_mask, memory)
        p, (_, _, _, height, width) = self.config.patch_size, hidden_states.shape
        v = self.final_linear["linear"](self.videodit_blocks["final_layernorm"](h))
        v = v.unflatten(1, (-1, height // p, width // p)).unflatten(-1, (p, p, -1))[:, clean:]
        v = v.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return {"x": v} if return_dict else v


class MagiPipeline(LatentPipeline):
    """The published sampler on latents of the first chunks, all at one time, with texts that were made elsewhere."""

    @torch.no_grad()
    def __call__(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        prompt_mask: Tensor,
        prompted: Tensor,
        num_inference_steps: int = 64,
        output_type: str = "latent",
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Times even in their roots, then shifted, as where it was published."""
        line, s = torch.linspace(0, 1, num_inference_steps + 1) ** 2, self.scheduler.config.shift
        told = {"encoder_hidden_states": prompt_embeds, "encoder_attention_mask": prompt_mask, "prompted": prompted}
        return (self.walked(latents, line / s / (1 + (1 / s - 1) * line), **told),)
