"""The rows: one function and one value a class of diffusers 0.42."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flowmap._types import Cond

from . import layout
from .row import Call, Positions, Row


def _embedded(cond: Cond, positions: Positions) -> Mapping[str, Any]:
    """Guidance that was distilled into the network, which is told of it."""
    return {"guidance_scale": float(cond["guidance"][0])}


# ------------------------------------------------------------------------------------------------ LTX-Video
def ltx(c: Call) -> Mapping[str, Any]:
    _, frames, _, height, width = c.shape
    p = c.positions
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "timestep": c.t if c.t.ndim == 1 else c.t.repeat_interleave(height * width, 1),
        "encoder_attention_mask": c.cond["mask"],
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (p.temporal / p.fps, p.spatial, p.spatial),
    }


LTX = Row(
    "LTXVideoTransformer3DModel", "LTXPipeline", ltx, ("time_embed.emb.timestep_embedder",), layout.TOKENS,
    tiny={"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
          "cross_attention_dim": 32, "num_layers": 2, "caption_channels": 16},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "mask": (5,)}, masks=("mask",), text={"text": 0, "mask": 1},
    given={"text": "prompt_embeds", "mask": "prompt_attention_mask"}, frames=True, fps=25.0, vae=(8, 32), side=1,
    call=lambda cond, positions: {"guidance_scale": 1.0, "frame_rate": positions.fps},
    hub="Lightricks/LTX-Video", shift=7.77,
)  # fmt: skip


# --------------------------------------------------------------------------------------------- HunyuanVideo
def hunyuan_video(c: Call) -> Mapping[str, Any]:
    mask = torch.cat([torch.ones_like(c.cond["mask"][:, :1]), c.cond["mask"][:, 1:]], 1)  # it divides by their number
    return {
        "hidden_states": c.x,
        "timestep": c.t,
        "encoder_hidden_states": c.cond["text"],
        "encoder_attention_mask": mask,
        "pooled_projections": c.cond["pooled"],
        "guidance": 1000 * c.cond["guidance"] if c.net.config.guidance_embeds else None,
    }


HUNYUAN_VIDEO = Row(
    "HunyuanVideoTransformer3DModel", "HunyuanVideoPipeline", hunyuan_video,
    ("time_text_embed.timestep_embedder", "context_embedder.time_text_embed.timestep_embedder"), layout.CHANNELS_FIRST,
    tiny={"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
          "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True,
          "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4)},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "mask": (5,), "pooled": (8,), "guidance": ()}, masks=("mask",),
    text={"text": 0, "pooled": 1, "mask": 2}, null=("text", "pooled"), call=_embedded,
    given={"text": "prompt_embeds", "mask": "prompt_attention_mask", "pooled": "pooled_prompt_embeds"},
    blocks=("transformer_blocks", "single_transformer_blocks"), hub="hunyuanvideo-community/HunyuanVideo", shift=7.0,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ CogVideoX
def cogvideox(c: Call) -> Mapping[str, Any]:
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "timestep": c.t,
        "image_rotary_emb": _rotary(c) if c.net.config.use_rotary_positional_embeddings else None,
    }


def _rotary(c: Call) -> Any:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    config, (_, frames, _, height, width) = c.net.config, c.shape
    p, dim = config.patch_size, config.attention_head_dim
    grid, base = (height // p, width // p), (config.sample_height // p, config.sample_width // p)
    if config.patch_size_t is None:
        crop = get_resize_crop_region_for_grid(grid, base[1], base[0])
        return get_3d_rotary_pos_embed(dim, crop, grid, frames, device=c.x.device)
    frames = -(-frames // config.patch_size_t)  # CogVideoX 1.5
    return get_3d_rotary_pos_embed(dim, None, grid, frames, grid_type="slice", max_size=base, device=c.x.device)


COGVIDEOX = Row(
    "CogVideoXTransformer3DModel", "CogVideoXPipeline", cogvideox, ("time_embedding",), layout.FRAMES_FIRST,
    tiny={"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
          "text_embed_dim": 16, "num_layers": 2, "sample_width": 6, "sample_height": 4, "sample_frames": 9,
          "patch_size": 2, "max_text_seq_length": 5, "use_rotary_positional_embeddings": True},
    example={"z": (3, 4, 4, 6), "text": (5, 16)}, given={"text": "prompt_embeds"}, vp=True, fps=8.0,
    hub="THUDM/CogVideoX-5b",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- images
def sd3(c: Call) -> Mapping[str, Any]:
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "pooled_projections": c.cond["pooled"],
        "timestep": c.t,
    }


SD3 = Row(
    "SD3Transformer2DModel", "StableDiffusion3Pipeline", sd3, ("time_text_embed.timestep_embedder",), layout.IMAGE,
    tiny={"sample_size": 8, "pos_embed_max_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2,
          "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 16,
          "pooled_projection_dim": 12},
    example={"z": (1, 4, 8, 6), "text": (5, 16), "pooled": (12,)}, text={"text": 0, "pooled": 2}, vae=(1, 8),
    given={"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}, null=("text", "pooled"), shift=3.0,
    hub="stabilityai/stable-diffusion-3.5-medium",
)  # fmt: skip


def flux(c: Call) -> Mapping[str, Any]:
    rows, columns = (torch.arange(n // 2, device=c.x.device, dtype=c.x.dtype) for n in c.shape[-2:])
    grid = torch.meshgrid(rows, columns, indexing="ij")
    ids = torch.stack([torch.zeros_like(grid[0]), *grid], -1).reshape(-1, 3)
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "pooled_projections": c.cond["pooled"],
        "timestep": c.t,
        "img_ids": ids,
        "txt_ids": ids.new_zeros(c.cond["text"].shape[1], 3),
        "guidance": c.cond["guidance"].float() if c.net.config.guidance_embeds else None,
    }


FLUX = Row(
    "FluxTransformer2DModel", "FluxPipeline", flux, ("time_text_embed.timestep_embedder",), layout.TOKENS_2X2,
    tiny={"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
          "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (4, 6, 6),
          "guidance_embeds": True},
    example={"z": (1, 4, 4, 6), "text": (5, 16), "pooled": (8,), "guidance": ()}, text={"text": 0, "pooled": 1},
    given={"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}, null=("text", "pooled"), told=1e-3,
    call=_embedded, vae=(1, 8), blocks=("transformer_blocks", "single_transformer_blocks"),
    hub="black-forest-labs/FLUX.1-dev", shift=3.16,
)  # fmt: skip

ROWS: Mapping[str, Row] = {
    "ltx": LTX, "hunyuan_video": HUNYUAN_VIDEO, "cogvideox": COGVIDEOX, "sd3": SD3, "flux": FLUX,
}  # fmt: skip
