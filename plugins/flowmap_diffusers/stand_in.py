"""Parts of pipelines at toy size with random weights, for `Row.parts`: what the witness encodes an image with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def wan_vae(spatial: int = 8) -> Any:
    """4 frames and 8 × 8 or 16 × 16 pixels a latent of 4 channels, with statistics that are no trivial ones."""
    from diffusers import AutoencoderKLWan

    said: dict[str, Any] = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    if spatial == 16:  # as of Wan2.2: pixels are folded first
        said |= {
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
            "is_residual": True,
        }
    return AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, **said).eval()


def cogvideox_vae() -> Any:
    """4 frames and 8 × 8 pixels a latent of 4 channels."""
    from diffusers import AutoencoderKLCogVideoX

    levels = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}
    return _certain(AutoencoderKLCogVideoX(latent_channels=4, **levels, scaling_factor=0.7).eval())


def ltx_vae() -> Any:
    """8 frames and 32 × 32 pixels a latent, as published, of 4 channels."""
    import torch
    from diffusers import AutoencoderKLLTXVideo

    sizes = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4, "patch_size": 4, "patch_size_t": 1}
    layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
    vae = AutoencoderKLLTXVideo(in_channels=3, out_channels=3, latent_channels=4, **sizes, **layers).eval()
    vae.latents_mean.copy_(torch.linspace(-1, 1, 4))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 4))
    return _certain(vae)


def _certain(vae: Any) -> Any:
    """With a posterior that is all but a point: pipelines from images draw from it, and `encode` takes its mode."""
    import torch

    with torch.no_grad():
        vae.encoder.conv_out.conv.weight[4:] = 0.0
        vae.encoder.conv_out.conv.bias[4:] = -60.0
    return vae


def clip_vision(width: int) -> Mapping[str, Any]:
    """Five tokens of an image: four patches and the class."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return {"image_encoder": encoder, "image_processor": processor}
