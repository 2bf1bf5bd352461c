"""Small pipelines of diffusers' own classes, in the layouts that Wan's relatives are published in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from flowmap_digits import TINY_WAN

SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


def parts() -> dict[str, Any]:
    """Of the shipped pipeline: all but the transformer."""
    pipe = WanPipeline.from_pretrained(TINY_WAN)
    return {name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}


def wan(seed: int = 3, **settings: Any) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(**{**SMALL, **settings}).eval()


def ti2v(folder: Path) -> DiffusionPipeline:
    """Wan2.2 TI2V-5B: a time a token, a residual VAE of 48 channels, 16 × 16 × 4, in patches."""
    torch.manual_seed(4)
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=48,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.01 * i for i in range(48)],
        latents_std=[1.0 + 0.02 * i for i in range(48)],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    ).eval()
    own = {**parts(), "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0)}
    net = wan(in_channels=48, out_channels=48)
    return saved(WanPipeline(**own, transformer=net, expand_timesteps=True), folder)


def two_experts(folder: Path, boundary_ratio: float = 0.875) -> DiffusionPipeline:
    """Wan2.2 A14B."""
    experts = {"transformer": wan(3), "transformer_2": wan(4)}
    return saved(WanPipeline(**parts(), **experts, boundary_ratio=boundary_ratio), folder)


def image_to_video(folder: Path) -> DiffusionPipeline:
    """Wan2.1 and 2.2 image-to-video: mask and first frame stand beside the latents."""
    net = wan(in_channels=12, image_dim=24, added_kv_proj_dim=24)
    return saved(WanImageToVideoPipeline(**parts(), transformer=net), folder)


def channels_beside(folder: Path) -> DiffusionPipeline:
    """An image-to-video network that calls itself a `WanPipeline`."""
    return saved(WanPipeline(**parts(), transformer=wan(in_channels=12)), folder)


def vace(folder: Path) -> DiffusionPipeline:
    net = WanVACETransformer3DModel(**SMALL, vace_layers=[0], vace_in_channels=8)
    return saved(WanVACEPipeline(**parts(), transformer=net), folder)


def skyreels(folder: Path) -> DiffusionPipeline:
    return saved(
        SkyReelsV2DiffusionForcingPipeline(**parts(), transformer=SkyReelsV2Transformer3DModel(**SMALL)), folder
    )


def saved(pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
