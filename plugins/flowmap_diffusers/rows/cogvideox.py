"""CogVideoX 2B, 5B and 1.5, Zhipu: variance preserving; the published ones predict v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import layout
from ..row import Call, Row


def inputs(c: Call) -> Mapping[str, Any]:
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


ROW = Row(
    "CogVideoXTransformer3DModel", "CogVideoXPipeline", inputs, ("time_embedding",), layout.FRAMES_FIRST,
    tiny={"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
          "text_embed_dim": 16, "num_layers": 2, "sample_width": 6, "sample_height": 4, "sample_frames": 9,
          "patch_size": 2, "max_text_seq_length": 5, "use_rotary_positional_embeddings": True},
    example={"z": (3, 4, 4, 6), "text": (5, 16)}, given={"text": "prompt_embeds"}, fps=8.0,
    scheduler="CogVideoXDDIMScheduler", predictions=("v_prediction", "epsilon", "sample"),
    schedule={"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
              "snr_shift_scale": 1.0, "clip_sample": False},
    hub="THUDM/CogVideoX-5b", size=(49, 480, 720), guidance=6.0,
)  # fmt: skip
