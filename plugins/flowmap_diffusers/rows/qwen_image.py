"""Qwen-Image, Alibaba."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmap.path import Convention

from .. import layout
from ..row import Call, Row


def inputs(c: Call) -> Mapping[str, Any]:
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "encoder_hidden_states_mask": c.cond["mask"],
        "timestep": c.t,
        "img_shapes": [[(1, c.shape[-2] // 2, c.shape[-1] // 2)]] * len(c.x),
    }


ROW = Row(
    "QwenImageTransformer2DModel", "QwenImagePipeline", inputs, ("time_text_embed.timestep_embedder",),
    layout.TOKENS_2X2, convention=Convention(),
    tiny={"in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
          "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)},
    example={"z": (1, 4, 4, 6), "text": (5, 16), "mask": (5,)}, masks=("mask",), text={"text": 0, "mask": 1},
    given={"text": "prompt_embeds", "mask": "prompt_embeds_mask"}, tokens=512, vae=(1, 8), shift=3.0,
    adapted=r"(attn\..*(to_|add_)|(img|txt)_mlp\.net\.)", call=lambda cond, positions: {"true_cfg_scale": 1.0},
    hub="Qwen/Qwen-Image", size=(1, 1024, 1024), guidance=4.0,
)  # fmt: skip
