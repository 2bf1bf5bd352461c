"""How well videos follow their prompts, and how close they come to real clips.

Motion is tracked, not learnt: the centroid of the ink, frame by frame. Digits are read by a small classifier, and
realism is the Fréchet distance between generated and real clips in the classifier's features (arXiv:1706.08500).
Videos are [N, F, 3, H, W] in [0, 1] everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from flowmap_digits import classifier as reader
from flowmap_digits.classifier import Moments
from flowmap_digits.videos import DIRECTIONS, PLAIN, Prompt, Style

OPENING = 3
"""A bouncing digit never meets the border before its third move, nor after its third last."""
BATCH = 256


def centroids(videos: Tensor) -> Tensor:
    """Where the ink is, (x, y) in pixels, [N, F, 2].

    A 3×3 average and a threshold at 0.3 of the clip's maximum remove faint noise; both commute with translation, so
    a digit that moves by whole pixels is followed exactly.
    """
    grey = nnf.avg_pool2d(nnf.pad(videos.float().mean(dim=2), (2, 2, 2, 2)), 3, stride=1)
    ink = (grey - 0.3 * grey.amax(dim=(1, 2, 3), keepdim=True)).clamp(min=0)
    mass = ink.sum(dim=(2, 3)).clamp(min=1e-6)
    x = (ink.sum(dim=2) * torch.arange(ink.shape[3], device=ink.device)).sum(dim=2) / mass
    y = (ink.sum(dim=3) * torch.arange(ink.shape[2], device=ink.device)).sum(dim=2) / mass
    return torch.stack([x, y], dim=2) - 1  # the average sees one pixel beyond each border


def motion(videos: Tensor) -> Tensor:
    """The centroid's displacement from each frame to the next, (x, y) in pixels, [N, F−1, 2]."""
    return centroids(videos).diff(dim=1)


def direction_accuracy(videos: Tensor, prompts: Sequence[Prompt]) -> float:
    """Share of the clips whose first three moves go mainly the way that the prompt says; standing still is wrong."""
    opening = motion(videos)[:, :OPENING].sum(dim=1)
    ways = torch.tensor(list(DIRECTIONS.values()), dtype=opening.dtype, device=opening.device)
    along = opening @ ways.T
    asked = reader.labels(prompts)["direction"].to(opening.device)
    right = (along.argmax(dim=1) == asked) & (along.amax(dim=1) > 0.5)
    return float(right.float().mean())


def speed_error(videos: Tensor, prompts: Sequence[Prompt], style: Style = PLAIN) -> float:
    """Mean of | ‖displacement‖ − asked speed | over clips and moves, in pixels a frame."""
    speed = motion(videos).norm(dim=2)
    asked = torch.tensor([style.speeds(prompt, videos.shape[1]) for prompt in prompts], device=speed.device)
    return float((speed - asked).abs().mean())


def bounce_accuracy(videos: Tensor, prompts: Sequence[Prompt]) -> float:
    """Share of the clips whose last moves oppose the first ones exactly when the prompt says "bouncing"."""
    moves = motion(videos)
    turn = (moves[:, :OPENING].sum(dim=1) * moves[:, -OPENING:].sum(dim=1)).sum(dim=1)
    asked = reader.labels(prompts)["bouncing"].to(turn.device)
    return float(((turn < 0) == (asked == 1)).float().mean())


@torch.no_grad()
def label_accuracy(videos: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Share of the clips in which the classifier reads the prompt's digit, direction, speed, bouncing."""
    network = reader.load()[0].to(videos.device)
    logits = [network(part) for part in videos.split(BATCH)]
    answers = reader.labels(prompts)
    guesses = {name: torch.cat([part[name] for part in logits]).argmax(dim=1).cpu() for name in answers}
    return {name: float((guesses[name] == answers[name]).float().mean()) for name in answers}


@torch.no_grad()
def features(videos: Tensor) -> Tensor:
    """The stored classifier's features, [N, 48]."""
    network = reader.load()[0].to(videos.device)
    return torch.cat([network.features(part) for part in videos.split(BATCH)])


def real_moments() -> Moments:
    """The stored moments of 4096 real clips, all 160 prompts equally likely.

    Videos of other prompts (the sixteen held-out ones, say) differ from these by their prompts alone: compare them
    with ``moments(features(clips(n, seed, "held_out")[0]))``.
    """
    return reader.load()[1]


def moments(values: Tensor) -> Moments:
    """Mean and covariance of features [N, D], in float64."""
    if len(values) < 2:
        raise ValueError(f"values has {len(values)} rows; a covariance needs at least 2")
    exact = values.detach().double().cpu()
    return Moments(exact.mean(dim=0), torch.cov(exact.T).reshape(exact.shape[1], exact.shape[1]))


def frechet(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance of two sets of features, [N, D] and [M, D], taken as Gaussian."""
    return gaussian_frechet(moments(a), moments(b))


def gaussian_frechet(a: Moments, b: Moments) -> float:
    r"""‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½), by eigenvalues in float64."""
    root = _root(a.cov)
    cross = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
