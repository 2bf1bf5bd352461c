"""Parts of pipelines at toy size with random weights, for `Row.parts`: what the witness encodes an image with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def wan_vae() -> Any:
    """4 frames and 8 × 8 pixels a latent of 4 channels, with statistics that are no trivial ones."""
    from diffusers import AutoencoderKLWan

    said = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    return AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, **said).eval()


def clip_vision(width: int) -> Mapping[str, Any]:
    """Five tokens of an image: four patches and the class."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return {"image_encoder": encoder, "image_processor": processor}
