"""How far samples in the plane are from a mixture of Gaussians; every point set is [N, 2]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .mixture2d import Mixture


def directions(n: int = 128) -> Tensor:
    """[n, 2] unit vectors, evenly over half a turn."""
    angle = (torch.arange(n) + 0.5) * (math.pi / n)
    return torch.stack([angle.cos(), angle.sin()], 1)


def sliced_w2(x: Tensor, y: Tensor, along: Tensor) -> float:
    """The root of the mean over directions of W2² between the projections of two sets of equal size."""
    if x.shape != y.shape:
        raise ValueError(f"{len(x)} points against {len(y)}: the sets must be of equal size")
    a, b = (along @ x.T).sort(1).values, (along @ y.T).sort(1).values
    return float((a - b).square().mean().sqrt())


def paired_error(x: Tensor, y: Tensor) -> float:
    """The mean distance between points of equal index."""
    return float((x - y).norm(dim=1).mean())


def outliers(x: Tensor, mixture: Mixture, sigmas: float = 4.0) -> float:
    """The share of samples farther than `sigmas` standard deviations from every mode; e^(-sigmas²/2) for the data."""
    nearest = torch.cdist(x, mixture.means).min(1).values
    return float((nearest > sigmas * mixture.std).float().mean())


def weight_tv(x: Tensor, mixture: Mixture) -> float:
    """Total variation between the modes' weights and the shares of samples that are nearest to them."""
    nearest = torch.cdist(x, mixture.means).argmin(1)
    shares = torch.bincount(nearest, minlength=mixture.modes) / len(x)
    return float((shares - mixture.weights).abs().sum() / 2)


def slope(steps: list[int], values: list[float]) -> float:
    """d value / d log2 steps, by least squares."""
    log = torch.tensor(steps, dtype=torch.float64).log2()
    value = torch.tensor(values, dtype=torch.float64)
    return float(((log - log.mean()) * (value - value.mean())).sum() / (log - log.mean()).square().sum())
