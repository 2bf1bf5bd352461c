"""Stable Diffusion 3 for flowmap: an image is a video of one latent frame, [B, 1, C, H, W]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen

from flowmap import FlowMap, FlowMapSpec, Rng, hookimpl

TINY = {
    "sample_size": 8,
    "pos_embed_max_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 12,
}


@frozen
class SD3(FlowMapSpec):
    """path: the directory or hub id of a diffusers `StableDiffusion3Pipeline`; None is random weights of `config`."""

    path: str | None = None
    checkpointing: bool = False
    config: Mapping[str, Any] = field(factory=lambda: dict(TINY))

    def build(self, roles, *, device, dtype) -> Mapping[str, FlowMap]:
        from .network import build

        return build(self, roles, device, dtype)

    def tiny(self) -> SD3:
        return evolve(self, path=None, config=dict(TINY))

    def example(self, batch: int = 2):
        import torch

        shapes = {"z": (1, 4, 8, 8), "text": (5, 16), "pooled": (12,)}
        rng = Rng.seeded(0)
        drawn = {name: rng.noise_like(torch.zeros(batch, *shape)) for name, shape in shapes.items()}
        return drawn.pop("z"), drawn


@hookimpl
def flowmap_backbones() -> Mapping[str, FlowMapSpec]:
    return {"sd3": SD3("stabilityai/stable-diffusion-3-medium-diffusers"), "sd3_tiny": SD3()}
