"""SkyReels-V2, Skywork: a network of Wan2.1's kind that can be told a time a frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import layout
from ..row import Call, Row


def inputs(c: Call) -> Mapping[str, Any]:
    rate = {"fps": [0 if c.positions.fps == 16 else 1]}  # one for all samples: the class repeats it by frames alone
    return {
        "hidden_states": c.x,
        "timestep": c.t,
        "encoder_hidden_states": c.cond["text"],
        "enable_diffusion_forcing": c.t.ndim == 2,
        **(rate if c.net.config.inject_sample_info else {}),
    }


ROW = Row(
    "SkyReelsV2Transformer3DModel", "SkyReelsV2Pipeline", inputs, ("condition_embedder.time_embedder",),
    layout.CHANNELS_FIRST,
    tiny={"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16,
          "freq_dim": 32, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 64},
    example={"z": (3, 4, 4, 6), "text": (5, 16)}, given={"text": "prompt_embeds"}, blocks=("blocks",), frames=True,
    hub="Skywork/SkyReels-V2-T2V-14B-720P-Diffusers", shift=8.0, size=(97, 544, 960), guidance=6.0,
)  # fmt: skip
