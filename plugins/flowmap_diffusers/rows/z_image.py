"""Z-Image, Alibaba: its guidance scale s is w = 1 + s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flowmap.path import Convention

from .. import layout
from ..row import Call, Row, texts


def inputs(c: Call) -> Mapping[str, Any]:
    return {"x": c.x, "t": c.t, "cap_feats": texts(c)}


def _ready(net: Any, device: torch.device) -> None:
    net.rope_embedder(torch.zeros(1, 3, dtype=torch.long, device=device))  # its tables, or a trace would leave its own


ROW = Row(
    "ZImageTransformer2DModel", "ZImagePipeline", inputs, ("t_embedder",), layout.LIST, latents=layout.IMAGE,
    tiny={"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
          "cap_feat_dim": 16, "axes_dims": [4, 6, 6], "axes_lens": [1024, 16, 16]},
    example={"z": (1, 4, 4, 6), "text": (5, 16), "mask": (5,)}, masks=("mask",), given={"text": "prompt_embeds"},
    names=("x", "t"), convention=Convention(1000.0, "1-t", "x-ε"), multiplies=1e3, tokens=512, vae=(1, 8),
    blocks=("noise_refiner", "context_refiner", "layers"), adapted=r"(attention\.to_|feed_forward\.w)", ready=_ready,
    call=lambda cond, positions: {"guidance_scale": 0.0}, hub="Tongyi-MAI/Z-Image", shift=6.0,
    size=(1, 1024, 1024), guidance=6.0,
)  # fmt: skip
