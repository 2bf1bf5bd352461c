"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import layout
from ..row import Call, Row


def inputs(c: Call) -> Mapping[str, Any]:
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "pooled_projections": c.cond["pooled"],
        "timestep": c.t,
    }


ROW = Row(
    "SD3Transformer2DModel", "StableDiffusion3Pipeline", inputs, ("time_text_embed.timestep_embedder",), layout.IMAGE,
    tiny={"sample_size": 8, "pos_embed_max_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2,
          "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 16,
          "pooled_projection_dim": 12},
    example={"z": (1, 4, 8, 6), "text": (5, 16), "pooled": (12,)}, text={"text": 0, "pooled": 2}, vae=(1, 8),
    given={"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}, null=("text", "pooled"), shift=3.0,
    hub="stabilityai/stable-diffusion-3.5-medium", size=(1, 1024, 1024), guidance=7.0,
)  # fmt: skip
