"""HunyuanVideo-1.5, Tencent: text to video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import layout
from ..row import Call, Row, unguided


def inputs(c: Call) -> Mapping[str, Any]:
    no_image = torch.tensor([], dtype=c.x.dtype, device=c.x.device)  # a constant, as it looks at every element of it
    return {
        "hidden_states": torch.cat([c.x, torch.zeros_like(c.x), torch.zeros_like(c.x[:, :1])], 1),
        "timestep": c.t.to(c.x.dtype),  # it goes on in the type of its time
        "encoder_hidden_states": c.cond["text"],
        "encoder_attention_mask": c.cond["mask"],
        "encoder_hidden_states_2": c.cond["text_2"],
        "encoder_attention_mask_2": c.cond["mask_2"],
        "image_embeds": no_image.reshape(len(c.x), 0, c.net.config.image_embed_dim),
    }


def parts() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLHunyuanVideo15, ClassifierFreeGuidance

    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
    return {"vae": vae, "guider": ClassifierFreeGuidance(guidance_scale=1.0)}


ROW = Row(
    "HunyuanVideo15Transformer3DModel", "HunyuanVideo15Pipeline", inputs,
    ("time_embed.timestep_embedder", "context_embedder.time_text_embed.timestep_embedder"), layout.FIRST_CHANNELS,
    tiny={"in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
          "num_refiner_layers": 1, "text_embed_dim": 16, "text_embed_2_dim": 8, "image_embed_dim": 8,
          "rope_axes_dim": (4, 6, 6)},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "mask": (5,), "text_2": (4, 8), "mask_2": (4,)},
    text={"text": 0, "mask": 1, "text_2": 2, "mask_2": 3}, masks=("mask", "mask_2"), null=("text", "text_2"),
    given={"text": "prompt_embeds", "mask": "prompt_embeds_mask", "text_2": "prompt_embeds_2",
           "mask_2": "prompt_embeds_mask_2"},
    call=unguided, parts=parts, only={"use_meanflow": False}, vae=(4, 16), side=1, shift=5.0,
    hub="hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v", size=(121, 480, 848), guidance=6.0,
)  # fmt: skip
