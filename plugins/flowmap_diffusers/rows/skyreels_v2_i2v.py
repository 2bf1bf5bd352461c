"""SkyReels-V2 from an image, Skywork: conditioned as Wan2.1 is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from .. import layout
from ..row import Call
from .skyreels_v2 import ROW as TEXT
from .wan_i2v import ROW as WAN


def inputs(c: Call) -> Mapping[str, Any]:
    return {**TEXT.inputs(c), **WAN.inputs(c)}


ROW = evolve(
    TEXT, pipeline="SkyReelsV2ImageToVideoPipeline", inputs=inputs, layout=layout.FIRST_CHANNELS,
    latents=TEXT.layout, tiny={**TEXT.tiny, "in_channels": 12, "image_dim": 8, "added_kv_proj_dim": 24},
    example=WAN.example, images=WAN.images, parts=WAN.parts, needs=WAN.needs, frames=False,
    hub="Skywork/SkyReels-V2-I2V-14B-540P-Diffusers", size=(97, 544, 960), guidance=5.0,
)  # fmt: skip
