"""FLUX.1-dev, Black Forest Labs: guidance was distilled into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import layout
from ..row import Call, Row, embedded


def inputs(c: Call) -> Mapping[str, Any]:
    rows, columns = (torch.arange(n // 2, device=c.x.device, dtype=c.x.dtype) for n in c.shape[-2:])
    grid = torch.meshgrid(rows, columns, indexing="ij")
    ids = torch.stack([torch.zeros_like(grid[0]), *grid], -1).reshape(-1, 3)
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "pooled_projections": c.cond["pooled"],
        "timestep": c.t,
        "img_ids": ids,
        "txt_ids": ids.new_zeros(c.cond["text"].shape[1], 3),
        "guidance": c.cond["guidance"].float() if c.net.config.guidance_embeds else None,
    }


ROW = Row(
    "FluxTransformer2DModel", "FluxPipeline", inputs, ("time_text_embed.timestep_embedder",), layout.TOKENS_2X2,
    tiny={"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
          "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (4, 6, 6),
          "guidance_embeds": True},
    example={"z": (1, 4, 4, 6), "text": (5, 16), "pooled": (8,), "guidance": ()}, text={"text": 0, "pooled": 1},
    given={"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}, null=("text", "pooled"), multiplies=1e3,
    call=embedded, vae=(1, 8), blocks=("transformer_blocks", "single_transformer_blocks"),
    hub="black-forest-labs/FLUX.1-dev", shift=3.16, size=(1, 1024, 1024), guidance=3.5,
)  # fmt: skip
