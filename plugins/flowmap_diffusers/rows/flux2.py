"""FLUX.2-dev, Black Forest Labs: guidance was distilled into it; a latent here is 2 × 2 of its VAE's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import layout
from ..row import Call, Layout, Row, embedded


def inputs(c: Call) -> Mapping[str, Any]:
    one, tokens = torch.arange(1), torch.arange(c.cond["text"].shape[1])
    rows, columns = (torch.arange(n) for n in c.shape[-2:])
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "timestep": c.t,
        "img_ids": torch.cartesian_prod(one, rows, columns, one).to(c.x.device),
        "txt_ids": torch.cartesian_prod(one, one, one, tokens).to(c.x.device),
        "guidance": c.cond["guidance"].float() if c.net.config.guidance_embeds else None,
    }


ROW = Row(
    "Flux2Transformer2DModel", "Flux2Pipeline", inputs, ("time_guidance_embed.timestep_embedder",), layout.TOKENS,
    latents=Layout(layout.IMAGE.to, layout.TOKENS.back),
    tiny={"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
          "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4, 4)},
    example={"z": (1, 16, 2, 3), "text": (5, 24), "guidance": ()}, given={"text": "prompt_embeds"}, multiplies=1e3,
    blocks=("transformer_blocks", "single_transformer_blocks"), adapted=r"(attn\.(to_|add_)|ff(_context)?\.linear_)",
    call=embedded, vae=(1, 16), side=1, shift=7.6, hub="black-forest-labs/FLUX.2-dev",
    size=(1, 1024, 1024), guidance=4.0,
)  # fmt: skip
