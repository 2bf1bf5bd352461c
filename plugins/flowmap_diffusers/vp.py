"""A variance-preserving diffusion as a flow on the linear path: an exact change of variables.

x_τ = α x + σ ε, α² + σ² = 1, and z_t = (1 - t) x + t ε are one process in other units,

    t = σ / (α + σ),    z_t = x_τ / (α + σ),    α = (1 - t) n,  σ = t n,  n = α + σ = ((1 - t)² + t²)^-½,

because d(x_τ / (α + σ)) = (ε̂ - x̂) dt along the probability flow, whatever the schedule τ -> (α, σ). So

    v-prediction  α ε - σ x:   u = (2t - 1) n² z + n v(n z, τ)
    ε-prediction:              u = (ε̂(n z, τ) - z) / (1 - t),  singular at t = 1
    x-prediction:              u = (z - x̂(n z, τ)) / t,        singular at t = 0

A step of DDIM is a step of Euler on the linear path.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scale(t: Tensor) -> Tensor:
    """n: x_τ = n z_t."""
    return ((1 - t) ** 2 + t**2).rsqrt()


def velocity(z: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """u = ε - x of the linear path from the v-prediction at x_τ = n z; t broadcasts against z."""
    n = scale(t)
    return (2 * t - 1) * n**2 * z + n * v


def prediction(z: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """The inverse of `velocity`: v."""
    n = scale(t)
    return (u - (2 * t - 1) * n**2 * z) / n


def velocity_from_noise(z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """u from an ε-prediction, for t < 1."""
    return (noise - z) / (1 - t)


def velocity_from_data(z: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """u from an x-prediction, for t > 0."""
    return (z - x) / t


def table(alphas_cumprod: Tensor) -> Tensor:
    """t of every discrete step τ = 0 .. N - 1, increasing, float64."""
    a = alphas_cumprod.double().clamp(0, 1)
    alpha, sigma = a.sqrt(), (1 - a).sqrt()
    return sigma / (alpha + sigma)


def step_of(t: Tensor, times: Tensor) -> Tensor:
    """The continuous step τ of t: linear between the table's entries, held at both ends; differentiable in t."""
    exact, times = t.double(), times.to(t.device)  # beside t = 1 they are closer than float32 can tell
    i = torch.searchsorted(times, exact.detach().contiguous()).clamp(1, len(times) - 1)
    low, high = times[i - 1], times[i]
    return ((i - 1) + ((exact - low) / (high - low)).clamp(0, 1)).to(t.dtype)
