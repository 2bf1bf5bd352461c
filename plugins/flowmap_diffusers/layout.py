"""From [B, F, C, H, W] to what networks take, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from .row import Layout


def packed(p: int) -> Layout:
    """[B, F · H/p · W/p, C p p], tokens of p × p latents, frame by frame, row by row."""

    def to(z: Tensor) -> Tensor:
        b, f, c, h, w = z.shape
        z = z.reshape(b, f, c, h // p, p, w // p, p)
        return z.permute(0, 1, 3, 5, 2, 4, 6).reshape(b, f * (h // p) * (w // p), c * p * p).contiguous()

    def back(y: Tensor, like: tuple[int, ...]) -> Tensor:
        b, f, c, h, w = like
        return y.reshape(b, f, h // p, w // p, c, p, p).permute(0, 1, 4, 2, 5, 3, 6).reshape(b, f, c, h, w)

    return Layout(to, back)


TOKENS, TOKENS_2X2 = packed(1), packed(2)
FRAMES_FIRST = Layout(lambda z: z, lambda y, like: y[:, :, : like[2]])
CHANNELS_FIRST = Layout(lambda z: z.transpose(1, 2), lambda y, like: y.transpose(1, 2))
FIRST_CHANNELS = Layout(CHANNELS_FIRST.to, lambda y, like: y[:, : like[2]].transpose(1, 2))
"""The same; a network may take channels of conditions after these."""
CHANNELS_LAST = Layout(lambda z: z.permute(0, 1, 3, 4, 2), lambda y, like: y.permute(0, 1, 4, 2, 3)[:, :, : like[2]])
"""[B, F, H, W, C], of which the same holds."""
IMAGE = Layout(lambda z: z.squeeze(1), lambda y, like: y.unsqueeze(1))
"""[B, C, H, W], of one frame."""
LIST = Layout(lambda z: [*z.transpose(1, 2)], lambda y, like: torch.stack([*y]).transpose(1, 2))
"""Of [C, F, H, W], one a sample."""
