"""Mochi 1, Genmo: noise is its time 0, and its velocity goes to the data."""

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
        "timestep": c.t,
        "encoder_attention_mask": c.cond["mask"],
    }


ROW = Row(
    "MochiTransformer3DModel", "MochiPipeline", inputs, ("time_embed.timestep_embedder",), layout.CHANNELS_FIRST,
    tiny={"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "pooled_projection_dim": 16,
          "in_channels": 12, "text_embed_dim": 16, "time_embed_dim": 16, "max_sequence_length": 5},
    example={"z": (3, 12, 4, 6), "text": (5, 16), "mask": (5,)}, masks=("mask",), text={"text": 0, "mask": 1},
    given={"text": "prompt_embeds", "mask": "prompt_attention_mask"}, fps=30.0, vae=(6, 8),
    convention=Convention(1000.0, clock="1-t", predicts="x-ε"), schedule={"invert_sigmas": True},
    hub="genmo/mochi-1-preview", size=(19, 480, 848), guidance=4.5,
)  # fmt: skip
