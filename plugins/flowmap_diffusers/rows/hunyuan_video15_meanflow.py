"""HunyuanVideo-1.5 with a second time of its own: its embedding is that of t plus that of r."""

from __future__ import annotations

from attrs import evolve

from . import hunyuan_video15

ROW = evolve(
    hunyuan_video15.ROW, second={"timestep_r": "time_embed.timestep_embedder_r"}, only={"use_meanflow": True}, hub=None,
    tiny={**hunyuan_video15.ROW.tiny, "use_meanflow": True},
)  # fmt: skip
