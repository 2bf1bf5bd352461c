"""HunyuanVideo, Tencent: guidance was distilled into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import layout
from ..row import Call, Row, embedded


def inputs(c: Call) -> Mapping[str, Any]:
    mask = torch.cat([torch.ones_like(c.cond["mask"][:, :1]), c.cond["mask"][:, 1:]], 1)  # it divides by their number
    return {
        "hidden_states": c.x,
        "timestep": c.t,
        "encoder_hidden_states": c.cond["text"],
        "encoder_attention_mask": mask,
        "pooled_projections": c.cond["pooled"],
        "guidance": 1000 * c.cond["guidance"] if c.net.config.guidance_embeds else None,
    }


ROW = Row(
    "HunyuanVideoTransformer3DModel", "HunyuanVideoPipeline", inputs,
    ("time_text_embed.timestep_embedder", "context_embedder.time_text_embed.timestep_embedder"), layout.CHANNELS_FIRST,
    tiny={"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
          "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True,
          "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4)},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "mask": (5,), "pooled": (8,), "guidance": ()}, masks=("mask",),
    text={"text": 0, "pooled": 1, "mask": 2}, null=("text", "pooled"), call=embedded,
    given={"text": "prompt_embeds", "mask": "prompt_attention_mask", "pooled": "pooled_prompt_embeds"},
    blocks=("transformer_blocks", "single_transformer_blocks"), hub="hunyuanvideo-community/HunyuanVideo", shift=7.0,
    size=(129, 720, 1280), guidance=6.0,
)  # fmt: skip
