"""What networks that begin with an image are told of it, as their pipelines make it: for `Row.images`.

Functions of (codec, images [B, 3, H, W] in [0, 1], frames of the video).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .codec import DiffusersCodec

GREY = 0.5
"""What is not given, in pixels: 0 as the VAE takes them."""


def first(codec: DiffusersCodec, images: Tensor, frames: int) -> Tensor:
    """[B, 1, C, h, w] latents of the image alone."""
    codec.latent_shape(frames, *images.shape[-2:])
    return codec.encode(images[:, None])


def then_zeros(codec: DiffusersCodec, images: Tensor, frames: int) -> Tensor:
    """[B, F, C, h, w]: `first`, and zeros of latents for the frames behind it, in the units of CogVideoX."""
    x, config = first(codec, images, frames), codec.pipeline.vae.config
    if config.get("invert_scale_latents"):  # the image's latents are divided by what others are multiplied with
        x = x / config["scaling_factor"] ** 2
    behind = codec.latent_shape(frames, *images.shape[-2:])[0] - 1
    return torch.cat([x, torch.zeros_like(x).expand(-1, behind, -1, -1, -1)], 1)


def padded(codec: DiffusersCodec, images: Tensor, frames: int) -> Tensor:
    """[B, F, C, h, w] latents of a video that begins with the image and is grey from then on."""
    codec.latent_shape(frames, *images.shape[-2:])
    grey = torch.full_like(images[:, None], GREY).expand(-1, frames - 1, -1, -1, -1)
    return codec.encode(torch.cat([images[:, None], grey], 1))


def masked(codec: DiffusersCodec, images: Tensor, frames: int) -> Tensor:
    """[B, F, p + C, h, w]: a mask of the p video frames behind each latent one, 1 on the first, and `padded`."""
    x = padded(codec, images, frames)
    mask = x.new_zeros(*x.shape[:2], codec.positions.temporal, *x.shape[-2:])
    mask[:, 0] = 1.0
    return torch.cat([mask, x], 2)


def features(codec: DiffusersCodec, images: Tensor, frames: int) -> Tensor:
    """[B, patches + 1, d] of the pipeline's image encoder, which is given bytes, as of a file."""
    shown = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    pipeline = codec.pipeline
    return torch.cat([pipeline.encode_image(one, pipeline.device) for one in shown])
