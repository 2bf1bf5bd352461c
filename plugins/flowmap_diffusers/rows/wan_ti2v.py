"""Wan2.2 TI2V-5B from an image, Alibaba: the first latent frame is given, at time 0; every token has a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import images, layout
from ..row import Call, Row
from ..stand_in import wan_vae


def inputs(c: Call) -> Mapping[str, Any]:
    tokens = c.shape[3] * c.shape[4] // 4
    return {
        "hidden_states": c.x,
        "timestep": c.t if c.t.ndim == 1 else c.t.repeat_interleave(tokens, 1),
        "encoder_hidden_states": c.cond["text"],
    }


ROW = Row(
    "WanTransformer3DModel", "WanImageToVideoPipeline", inputs, ("condition_embedder.time_embedder",),
    layout.CHANNELS_FIRST,
    tiny={"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16,
          "freq_dim": 32, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 64},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "first": (1, 4, 4, 6)}, images={"first": images.first}, held="first",
    given={"text": "prompt_embeds"}, blocks=("blocks",), frames=True, vae=(4, 16), only={"image_dim": None},
    parts=lambda: {"vae": wan_vae(16), "expand_timesteps": True}, index={"expand_timesteps": True},
    also=("WanPipeline",), hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers", shift=5.0, size=(121, 704, 1280), guidance=5.0,
)  # fmt: skip
