"""LTX-Video, Lightricks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import layout
from ..row import Call, Row


def inputs(c: Call) -> Mapping[str, Any]:
    _, frames, _, height, width = c.shape
    p = c.positions
    return {
        "hidden_states": c.x,
        "encoder_hidden_states": c.cond["text"],
        "timestep": c.t if c.t.ndim == 1 else c.t.repeat_interleave(height * width, 1),
        "encoder_attention_mask": c.cond["mask"],
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (p.temporal / p.fps, p.spatial, p.spatial),
    }


ROW = Row(
    "LTXVideoTransformer3DModel", "LTXPipeline", inputs, ("time_embed.emb.timestep_embedder",), layout.TOKENS,
    tiny={"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
          "cross_attention_dim": 32, "num_layers": 2, "caption_channels": 16},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "mask": (5,)}, masks=("mask",), text={"text": 0, "mask": 1},
    given={"text": "prompt_embeds", "mask": "prompt_attention_mask"}, frames=True, fps=25.0, vae=(8, 32), side=1,
    call=lambda cond, positions: {"guidance_scale": 1.0, "frame_rate": positions.fps},
    hub="Lightricks/LTX-Video", shift=7.77, size=(161, 512, 704), guidance=3.0,
)  # fmt: skip
