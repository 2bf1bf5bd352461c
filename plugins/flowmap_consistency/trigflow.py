r"""TrigFlow, arXiv:2410.11081, and a rectified-flow network seen in it.

    x_θ = cos θ x + sin θ ε,   θ in [0, π/2],        z_t = x_θ / (c + s),   t = s / (c + s),   c = cos θ, s = sin θ.

A state is the same up to a factor, so a network u of (z_t, t) gives one of (x_θ, θ), exactly and without a division:

    F = dx_θ/dθ = ((c - s) x_θ + u) / (c + s),        c x_θ - s F = z_t - t u,   the prediction of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmap._types import Latent, Time
from flowmap.path import expand


def cos_sin(t: Time, z: Tensor) -> tuple[Tensor, Tensor]:
    """(c, s) at the angle of t: (1 - t, t) / sqrt((1 - t)² + t²), to broadcast against z."""
    norm = ((1 - t) ** 2 + t**2).sqrt()
    return expand((1 - t) / norm, z), expand(t / norm, z)


def angle(t: Time) -> Tensor:
    """θ = arctan(t / (1 - t))."""
    return torch.atan2(t, 1 - t)


def time(θ: Tensor) -> Time:
    """t = s / (c + s)."""
    return θ.sin() / (θ.cos() + θ.sin())


def velocity(x: Latent, u: Latent, c: Tensor, s: Tensor) -> Latent:
    """F, of the state x_θ and a velocity u = dz/dt there; of u = ε - x it is cos θ ε - sin θ x."""
    return ((c - s) * x + u) / (c + s)


def derivative(x: Latent, dx: Latent, u: Latent, du: Latent, c: Tensor, s: Tensor) -> Latent:
    """dF/dθ along dx = dx_θ/dθ, from du = d/dt u along dz/dt, by dt/dθ = 1 / (c + s)² and the product rule.

    Every term is bounded where u and du are, up to pure noise.
    """
    p, m = c + s, c - s
    return -2 * x / p**2 + m / p * dx - m / p**2 * u + du / p**3
