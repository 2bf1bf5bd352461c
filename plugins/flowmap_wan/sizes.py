"""The published Wan text-to-video transformers of one network as data: what can be known of them without their weights.

arXiv:2503.20314; a latent frame is 8 × 8 pixels and, but for the first, four video frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmap_diffusers.folder import fetch, local

from flowmap.mistaken import read

_COMMON: Mapping[str, Any] = {
    "patch_size": (1, 2, 2),
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
T2V_1_3B: Mapping[str, Any] = {**_COMMON, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
T2V_14B: Mapping[str, Any] = {**_COMMON, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
TI2V_5B: Mapping[str, Any] = {
    **_COMMON,
    "in_channels": 48,
    "out_channels": 48,
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
}
"""Wan2.2's: its latent frames are 16 × 16 pixels."""
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": T2V_1_3B,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": T2V_14B,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": TI2V_5B,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": T2V_14B,
}
"""By hub id; of A14B each expert."""
SHIFT = 5.0
"""Of the sampling grid, where no scheduler says another: Wan's own for 720 lines."""
SHIFTS: Mapping[str, float] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 3.0,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": 3.0,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": 5.0,
}
"""That of the published scheduler, by hub id."""
SCHEDULER = "scheduler/scheduler_config.json"
"""In a pipeline's directory."""
LATENT = (21, 16, 60, 104)
"""81 frames at 480 × 832, [F, C, H, W]."""
TEXT = (512, 4096)
"""A prompt's embeddings, [positions, text_dim]."""
SIZES = (
    *("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim"),
    *("freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "eps", "image_dim", "rope_max_seq_len"),
)
"""What of a transformer's configuration is its size: the same in Wan's and in every student's."""


def shift(path: str | None) -> float:
    """Of the grid of the pipeline's scheduler; of a hub id that is not here as it was published, or fetched."""
    if path is None:
        return SHIFT
    folder = local(path)
    if folder is None and path in SHIFTS:
        return SHIFTS[path]
    config = read((folder or fetch(path)) / SCHEDULER)
    found: float = config.get("shift", config.get("flow_shift", SHIFT))
    return found
