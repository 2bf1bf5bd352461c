"""CogVideoX 5B and 1.5 from an image, Zhipu: the image's latents beside those of the video, and zeros behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import evolve

from .. import images
from ..row import Call
from ..stand_in import cogvideox_vae
from .cogvideox import ROW as TEXT


def inputs(c: Call) -> Mapping[str, Any]:
    said = {"ofs": c.x.new_full((1,), 2.0)} if c.net.config.ofs_embed_dim is not None else {}
    return {**TEXT.inputs(c), "hidden_states": torch.cat([c.x, c.cond["first"]], 2), **said}


ROW = evolve(
    TEXT, pipeline="CogVideoXImageToVideoPipeline", inputs=inputs, tiny={**TEXT.tiny, "in_channels": 8},
    example={**TEXT.example, "first": (3, 4, 4, 6)}, images={"first": images.then_zeros},
    parts=lambda: {"vae": cogvideox_vae()}, hub="THUDM/CogVideoX-5b-I2V",
)  # fmt: skip
