"""Wan2.1 image to video, Alibaba: text of 512 tokens, behind which diffusers parts the image's from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flowmap.model import ConditionError

from .. import images, layout
from ..row import Call, Row
from ..stand_in import clip_vision, wan_vae

TEXT = 512


def inputs(c: Call) -> Mapping[str, Any]:
    if (given := c.cond["text"].shape[1]) != TEXT:
        raise ConditionError(f"cond['text'] has {given} positions: must have {TEXT}, behind those of the image")
    return {
        "hidden_states": torch.cat([c.x, c.cond["first"].transpose(1, 2)], 1),
        "timestep": c.t,
        "encoder_hidden_states": c.cond["text"],
        "encoder_hidden_states_image": c.cond["image"],
    }


ROW = Row(
    "WanTransformer3DModel", "WanImageToVideoPipeline", inputs, ("condition_embedder.time_embedder",),
    layout.FIRST_CHANNELS,
    tiny={"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 12, "out_channels": 4, "text_dim": 16,
          "freq_dim": 32, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 64, "image_dim": 8,
          "added_kv_proj_dim": 24},
    example={"z": (3, 4, 4, 6), "text": (TEXT, 16), "image": (5, 8), "first": (3, 8, 4, 6)},
    images={"image": images.features, "first": images.masked}, given={"text": "prompt_embeds"}, blocks=("blocks",),
    parts=lambda: {"vae": wan_vae(), **clip_vision(8)}, needs=("image_dim",),
    index={"expand_timesteps": None}, hub="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", shift=3.0, fps=16.0,
    size=(81, 480, 832), guidance=5.0,
)  # fmt: skip
