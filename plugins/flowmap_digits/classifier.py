"""A small network that reads a clip back: which digit, which way, how fast, bouncing or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as nnf
from attrs import frozen
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowmap_digits import CLASSIFIER
from flowmap_digits.videos import DIGITS, DIRECTIONS, FRAMES, SPEEDS, Prompt

FEATURES = 48
LABELS = {"digit": len(DIGITS), "direction": len(DIRECTIONS), "speed": len(SPEEDS), "bouncing": 2}
"""What is read from a clip, and among how many possibilities."""


@frozen(eq=False)
class Moments:
    """Mean [D] and covariance [D, D] of features, in float64."""

    mean: Tensor
    cov: Tensor


class Classifier(nn.Module):
    """Three space-time convolutions, pooled over space, then a linear reading of the frames in order (53k weights)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_stage(1, 16, stride=(1, 2, 2)),
            *_stage(16, 24, stride=(1, 2, 2)),
            *_stage(24, 40, stride=(1, 1, 1)),
        )
        self.project = nn.Linear(40 * FRAMES, FEATURES)
        self.head = nn.Linear(FEATURES, sum(LABELS.values()))

    def features(self, videos: Tensor) -> Tensor:
        """Videos [N, 9, 3, 32, 32] in [0, 1] to features [N, 48]."""
        if videos.ndim != 5 or videos.shape[1] != FRAMES:
            raise ValueError(f"videos has shape {tuple(videos.shape)}; the classifier reads [N, {FRAMES}, 3, H, W]")
        grey = videos.float().mean(dim=2)[:, None]
        maps = self.body(grey)
        return torch.tanh(self.project(maps.amax(dim=(3, 4)).flatten(1)))

    def forward(self, videos: Tensor) -> dict[str, Tensor]:
        """Logits [N, classes] for every entry of ``LABELS``."""
        logits = self.head(self.features(videos))
        return dict(zip(LABELS, logits.split(list(LABELS.values()), dim=1), strict=True))


def _stage(inputs: int, outputs: int, stride: tuple[int, int, int]) -> tuple[nn.Module, ...]:
    return nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm3d(outputs), nn.SiLU()


def labels(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """The right answers, [N] int64 for every entry of ``LABELS``."""
    directions, speeds = list(DIRECTIONS), list(SPEEDS)
    return {
        "digit": torch.tensor([p.digit for p in prompts]),
        "direction": torch.tensor([directions.index(p.direction) for p in prompts]),
        "speed": torch.tensor([speeds.index(p.speed) for p in prompts]),
        "bouncing": torch.tensor([int(p.bouncing) for p in prompts]),
    }


def loss(logits: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
    """The sum of the four cross-entropies, with labels smoothed so that features stay bounded and even."""
    parts = [nnf.cross_entropy(logits[name], answers[name], label_smoothing=0.05) for name in LABELS]
    return torch.stack(parts).sum()


def save(classifier: Classifier, real: Moments, path: Path) -> None:
    """Weights and the moments of real clips in one safetensors file."""
    weights = {f"classifier.{name}": value.contiguous() for name, value in classifier.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**weights, "real.mean": real.mean, "real.cov": real.cov}, path)


@cache
def load(path: Path = CLASSIFIER) -> tuple[Classifier, Moments]:
    """The frozen classifier in evaluation mode, and the moments of real clips of all prompts in its features."""
    stored = load_file(path)
    real = Moments(stored.pop("real.mean"), stored.pop("real.cov"))
    classifier = Classifier()
    classifier.load_state_dict({name.removeprefix("classifier."): value for name, value in stored.items()})
    return classifier.eval().requires_grad_(False), real
