"""Kandinsky 5 from text, Sber: its pipeline keeps an image and a mask, both zero, behind the latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmap._types import Cond

from .. import layout
from ..row import Call, Layout, Positions, Row, texts


def inputs(c: Call) -> Mapping[str, Any]:
    from diffusers import Kandinsky5T2VPipeline

    text, grid = torch.stack(texts(c)), (c.shape[1], c.shape[-2] // 2, c.shape[-1] // 2)
    return {
        "hidden_states": beside(c.x) if c.net.config.visual_cond else c.x,
        "encoder_hidden_states": text,
        "pooled_projections": c.cond["pooled"],
        "timestep": c.t,
        "visual_rope_pos": [torch.arange(n, device=c.x.device) for n in grid],
        "text_rope_pos": torch.arange(text.shape[1], device=c.x.device),
        "scale_factor": Kandinsky5T2VPipeline._get_scale_factor(None, *(n * c.positions.spatial for n in c.shape[-2:])),
    }


def beside(z: Tensor) -> Tensor:
    return torch.cat([z, torch.zeros_like(z), torch.zeros_like(z[..., :1])], -1)


def call(cond: Cond, positions: Positions) -> Mapping[str, Any]:
    lengths = {"prompt_cu_seqlens": torch.tensor([0, int(cond["mask"].sum())])} if "mask" in cond else {}
    return {"guidance_scale": 1.0, **lengths}


BESIDE = Layout(lambda z: beside(layout.CHANNELS_LAST.to(z)), layout.CHANNELS_LAST.back)

ROW = Row(
    "Kandinsky5Transformer3DModel", "Kandinsky5T2VPipeline", inputs, ("time_embeddings",), layout.CHANNELS_LAST,
    tiny={"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16, "ff_dim": 32,
          "model_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6), "visual_cond": True},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "mask": (5,), "pooled": (8,)}, text={"text": 0, "pooled": 1},
    masks=("mask",), tokens=512, alone=True, call=call,
    given={"text": "prompt_embeds_qwen", "pooled": "prompt_embeds_clip"}, null=("text", "pooled"), latents=BESIDE,
    blocks=("text_transformer_blocks", "visual_transformer_blocks"), only={"attention_type": "regular"},
    adapted=r"((self|cross)_attention\.(to_|out_layer)|feed_forward\.)",
    hub="kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers", size=(121, 512, 768), guidance=5.0,
)  # fmt: skip
