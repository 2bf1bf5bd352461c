"""Step-Video-T2V, StepFun: noise is its time 0, and its velocity goes to the data. Latents alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import functional as F

from flowmap.path import Convention

from .. import layout
from ..row import Call, Row, unguided


def inputs(c: Call) -> Mapping[str, Any]:
    clip = c.cond["clip"]
    return {
        "hidden_states": c.x,
        "timestep": c.t,
        "encoder_hidden_states": c.cond["text"],
        "encoder_hidden_states_2": clip,
        "encoder_attention_mask": F.pad(c.cond["mask"], (clip.shape[1], 0), value=1),
    }


ROW = Row(
    "StepVideoModel", "StepVideoPipeline", inputs, ("adaln_single.emb.timestep_embedder",), layout.FRAMES_FIRST,
    module="flowmap_diffusers.networks.step_video", convention=Convention(1000.0, "1-t", "x-ε"), multiplies=1e3,
    tiny={"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
          "caption_channels": (16, 8)},
    example={"z": (3, 4, 4, 6), "text": (5, 16), "clip": (3, 8), "mask": (5,)}, masks=("mask",),
    given={"text": "prompt_embeds", "clip": "clip_embeds", "mask": "prompt_mask"}, null=("text", "clip"), call=unguided,
    only={"use_additional_conditions": False, "patch_size": 1}, adapted=r"(attn\d\.w|ff\.net\.)",
    vae=(8, 16), side=1, hub="stepfun-ai/stepvideo-t2v", shift=13.0, licence="MIT", guidance=9.0,
)  # fmt: skip
