"""Cosmos-Predict2.5, NVIDIA: text to world; its guidance scale s is w = 1 + s, from s = 1 on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flowmap.path import Convention

from .. import layout
from ..row import Call, Row


def inputs(c: Call) -> Mapping[str, Any]:
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "timestep": c.t if c.t.ndim == 1 else c.t[:, None, :, None, None],
        "condition_mask": torch.zeros_like(c.x[:, :1]),  # no frame is given
        "padding_mask": torch.zeros_like(c.x[:1, :1, 0]),
    }


class Unasked(torch.nn.Module):
    """In place of the checker of prompts and frames, to which latents do not come."""

    device, dtype = torch.device("cpu"), torch.float32


def parts() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLWan

    said = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, **said)
    return {"vae": vae, "safety_checker": Unasked()}


ROW = Row(
    "CosmosTransformer3DModel", "Cosmos2_5_PredictBasePipeline", inputs,
    ("time_embed.t_embedder", "time_embed.norm"), layout.CHANNELS_FIRST, convention=Convention(), frames=True,
    tiny={"in_channels": 5, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
          "text_embed_dim": 16, "adaln_lora_dim": 4, "max_size": (8, 16, 16), "concat_padding_mask": False,
          "use_crossattn_projection": True, "crossattn_proj_in_channels": 24, "encoder_hidden_states_channels": 16},
    example={"z": (3, 4, 4, 6), "text": (5, 24)}, given={"text": "prompt_embeds"}, parts=parts, shift=5.0, fps=16.0,
    call=lambda cond, positions: {"guidance_scale": 0.0}, hub="nvidia/Cosmos-Predict2.5-2B",
    size=(93, 704, 1280), guidance=8.0,
)  # fmt: skip
