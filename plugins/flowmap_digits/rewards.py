"""Rewards for moving digits that anybody can check by eye: more ink, higher up, read as what was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor, nn

from flowmap.rewards import ModuleReward

from . import classifier
from .videos import prompts_with


@frozen
class Ink:
    """Mean brightness of the clip, in [0, 1]."""

    name: str = "ink"
    differentiable: bool = True

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.flatten(1).mean(1)


@frozen
class Position:
    """How high up the ink is, on average over frames: 1 at the upper border, 0 at the lower."""

    name: str = "position"
    differentiable: bool = True

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        ink = videos.mean(2).sum(-1)  # [B, frames, rows]
        height = torch.linspace(1, 0, ink.shape[-1], device=ink.device)
        return ((ink * height).sum(-1) / ink.sum(-1).clamp_min(1e-6)).mean(1)


INK, POSITION = Ink(), Position()


class Reader(nn.Module):
    """The log-probability that the stored classifier gives to the prompt's digit, as a CLIP-like score would be."""

    def __init__(self) -> None:
        super().__init__()
        self.net = classifier.load()[0]

    def forward(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = torch.tensor([prompt.digit for prompt in prompts_with(prompts)], device=videos.device)
        return self.net(videos)["digit"].log_softmax(-1).gather(1, asked[:, None])[:, 0]


LEGIBLE = ModuleReward("legible", Reader)
"""A reward by a network, which reads the prompt."""
