"""MAGI-1, Sand AI: chunk after chunk; noise is its time 0, and its velocity goes to the data. Latents alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmap.path import Convention

from .. import layout
from ..row import Call, Row, unguided


def inputs(c: Call) -> Mapping[str, Any]:
    return {
        "hidden_states": c.x,
        "timestep": c.t,
        "encoder_hidden_states": c.cond["text"],
        "encoder_attention_mask": c.cond["mask"],
        "prompted": c.cond["prompted"],
        "history": c.cond.get("history"),
        "memory": c.cache,
    }


ROW = Row(
    "MagiModel", "MagiPipeline", inputs, ("t_embedder.mlp",), layout.FRAMES_FIRST, others=(1,), causal=True,
    module="flowmap_diffusers.networks.magi", convention=Convention(1000.0, "1-t", "x-ε"), multiplies=1e3,
    tiny={"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 2,
          "kv_channels": 16, "in_channels": 4, "out_channels": 4, "caption_channels": 16, "caption_max_length": 7,
          "chunk_width": 2, "noise_range": 3},
    example={"z": (7, 4, 4, 6), "text": (5, 16), "mask": (5,), "prompted": ()}, masks=("mask",),
    given={"text": "prompt_embeds", "mask": "prompt_mask", "prompted": "prompted"}, null=("text", "prompted"),
    only={"gated_linear_unit": False, "half_channel_vae": False, "apply_layernorm_1p": True, "x_rescale_factor": 1,
          "t_patch_size": 1},
    blocks=("videodit_blocks.layers",), adapted=r"(self_attention\.linear_|mlp\.)", call=unguided,
    vae=(4, 8), shift=3.0, licence="Apache-2.0",
)  # fmt: skip
