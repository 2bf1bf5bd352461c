"""EasyAnimate 5.1, Alibaba: it hears of its text to the last place, padding too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flowmap._types import Cond

from .. import layout
from ..row import Call, Positions, Row


def inputs(c: Call) -> Mapping[str, Any]:
    return {"hidden_states": c.x, "timestep": c.t, "encoder_hidden_states": c.cond["text"]}


def call(cond: Cond, positions: Positions) -> Mapping[str, Any]:
    """With a mask that is asked for, and not used."""
    mask = {"prompt_attention_mask": torch.ones(cond["text"].shape[:2])} if "text" in cond else {}
    return {"guidance_scale": 1.0, **mask}


def parts() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLMagvit

    return {"vae": AutoencoderKLMagvit(latent_channels=4, block_out_channels=(8,) * 4, norm_num_groups=4)}


ROW = Row(
    "EasyAnimateTransformer3DModel", "EasyAnimatePipeline", inputs, ("time_embedding",), layout.CHANNELS_FIRST,
    tiny={"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "patch_size": 2,
          "num_layers": 2, "mmdit_layers": 1, "time_embed_dim": 8, "text_embed_dim": 16},
    example={"z": (3, 4, 4, 6), "text": (5, 16)}, given={"text": "prompt_embeds"}, call=call, parts=parts, fps=8.0,
    adapted=r"(attn1\..*(to_|add_)|(txt_)?ff\.net\.)", hub="alibaba-pai/EasyAnimateV5.1-7b-zh-diffusers",
    size=(49, 512, 512), guidance=5.0,
)  # fmt: skip
