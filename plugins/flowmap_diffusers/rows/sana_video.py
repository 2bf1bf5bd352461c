"""Sana-Video, NVIDIA: linear attention. Its pipeline has no call for networks that guidance is embedded into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import layout
from ..row import Call, Row


def inputs(c: Call) -> Mapping[str, Any]:
    p = c.net.config.patch_size[-1]
    tokens = c.shape[-2] * c.shape[-1] // p**2
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "timestep": c.t if c.t.ndim == 1 else c.t.repeat_interleave(tokens, 1),
        "encoder_attention_mask": c.cond["mask"],
    }


ROW = Row(
    "SanaVideoTransformer3DModel", "SanaVideoPipeline", inputs, ("time_embed.emb.timestep_embedder",),
    layout.CHANNELS_FIRST,
    tiny={"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
          "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
          "caption_channels": 16, "rope_max_seq_len": 64},
    example={"z": (3, 4, 4, 8), "text": (5, 16), "mask": (5,)}, masks=("mask",), text={"text": 0, "mask": 1},
    given={"text": "prompt_embeds", "mask": "prompt_attention_mask"}, frames=True, fps=16.0, side=4,
    empty={"complex_human_instruction": None}, only={"guidance_embeds": False},
    call=lambda cond, positions: {"guidance_scale": 1.0, "use_resolution_binning": False},
    hub="Efficient-Large-Model/SANA-Video_2B_480p_diffusers", shift=8.0, size=(81, 480, 832), guidance=6.0,
)  # fmt: skip
