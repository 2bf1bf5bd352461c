"""Motif-Video, Motif Technologies: text to video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import layout
from ..row import Call, Row, unguided


def inputs(c: Call) -> Mapping[str, Any]:
    return {
        "hidden_states": torch.cat([c.x, torch.zeros_like(c.x), torch.zeros_like(c.x[:, :1])], 1),
        "timestep": c.t,
        "encoder_hidden_states": c.cond["text"],
        "encoder_attention_mask": c.cond["mask"],
    }


def parts() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLWan, ClassifierFreeGuidance

    vae = AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1)
    return {"vae": vae, "guider": ClassifierFreeGuidance(guidance_scale=1.0)}


ROW = Row(
    "MotifVideoTransformer3DModel", "MotifVideoPipeline", inputs, ("time_text_embed.timestep_embedder",),
    layout.FIRST_CHANNELS,
    tiny={"in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
          "num_single_layers": 2, "num_decoder_layers": 1, "text_embed_dim": 16, "rope_axes_dim": (4, 6, 6),
          "enable_text_cross_attention_dual": True, "enable_text_cross_attention_single": True},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "mask": (5,)}, text={"text": 0, "mask": 2}, masks=("mask",),
    given={"text": "prompt_embeds", "mask": "prompt_attention_mask"}, call=unguided, parts=parts, shift=3.0,
    blocks=("transformer_blocks", "single_transformer_blocks"), hub="Motif-Technologies/Motif-Video-2B",
    size=(121, 736, 1280),
)  # fmt: skip
