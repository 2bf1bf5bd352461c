"""The linear interpolant z_t = (1 - t) x + t ε and its velocity v = ε - x.

Rectified flow, arXiv:2209.03003; flow matching, arXiv:2210.02747. Times are float32 and are never cast down, so
this algebra happens in float32 or wider whatever the dtype of the latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

from . import validators
from ._types import Latent, Time


def expand(t: Time, z: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] (or [B, F] -> [B, F, 1, ...]), to broadcast against z."""
    return t.reshape(t.shape + (1,) * (z.ndim - t.ndim))


def interpolate(x: Latent, noise: Latent, t: Time) -> tuple[Latent, Latent]:
    """(z_t, v)."""
    s = expand(t, x)
    return (1 - s) * x + s * noise, noise - x


def data_from_velocity(z: Latent, v: Latent, t: Time) -> Latent:
    """x̂ = z_t - t v."""
    return z - expand(t, z) * v


def noise_from_velocity(z: Latent, v: Latent, t: Time) -> Latent:
    """ε̂ = z_t + (1 - t) v."""
    return z + (1 - expand(t, z)) * v


def velocity_from_data(z: Latent, x: Latent, t: Time) -> Latent:
    """v = (z_t - x̂) / t, for t > 0."""
    return (z - x) / expand(t, z)


def score_from_velocity(z: Latent, v: Latent, t: Time) -> Latent:
    """∇ log p_t(z) = -ε̂ / t, for t > 0."""
    return -noise_from_velocity(z, v, t) / expand(t, z)


def renoise(z: Latent, noise: Latent, r: Time, t: Time) -> Latent:
    """z_r -> z_t for t >= r by adding noise: a z_r + sqrt(t² - a² r²) ε with a = (1 - t) / (1 - r).

    From r = 0 this is `interpolate`; from r = 1 only t = 1 can be reached.
    """
    r, t = expand(r, z), expand(t, z)
    a = (1 - t) / (1 - r).clamp_min(torch.finfo(r.dtype).tiny)
    a = torch.where(r < 1, a, torch.ones_like(a))
    return a * z + (t**2 - (a * r) ** 2).clamp_min(0).sqrt() * noise


def sub_velocity(x: Latent, noise: Latent, s: Time, t: Time) -> tuple[Latent, Latent, Tensor]:
    """(x_t, v_sub, b) of x_s = x, for s < t: a = (1 - t) / (1 - s), b² = t² - a² s²,

        x_t = a x_s + b ε,      v_sub = d/dt x_t = -x_s / (1 - s) + b' ε,      b b' = t + (1 - t) s² / (1 - s)².

    E[v_sub | x_t] is the velocity E[ε - x | x_t] of the data of which x_s is a noisy sample; at s = 0 it is ε - x.
    """
    a = (1 - t) / (1 - s)
    b = (t**2 - (a * s) ** 2).sqrt()
    slope = (t + (1 - t) * (s / (1 - s)) ** 2) / b
    return expand(a, x) * x + expand(b, x) * noise, expand(slope, x) * noise - x / expand(1 - s, x), b


def state_from_velocity(z: Latent, v: Latent, t: Time, s: float) -> Latent:
    """E[z_s | z_t] of z_t = a z_s + b ε, `renoise`, for s <= t and s < 1; at s = 0 it is `data_from_velocity`:

    (z_t + b² ∇ log p_t(z_t)) / a  =  [(1 - s) + a s² / t] z_t - (1 - s) (b² / t) v.
    """
    if not s:
        return data_from_velocity(z, v, t)
    a = (1 - t) / (1 - s)
    return expand(1 - s + a * s**2 / t, z) * z - expand((1 - s) * (t - (a * s) ** 2 / t), z) * v


def shift(t: Tensor, s: float) -> Tensor:
    """The resolution shift s·t / (1 + (s - 1) t), arXiv:2403.03206, eq. 23."""
    return s * t / (1 + (s - 1) * t)


def unshift(t: Tensor, s: float) -> Tensor:
    """The inverse of `shift`."""
    return t / (s - (s - 1) * t)


@frozen
class Convention:
    """What a network calls time and velocity, where it is not what is called so here.

    scale: it is told scale · t. clock: it counts t, or 1 - t where noise is its 0. predicts: "ε-x", or "x-ε" where its
    velocity goes from noise to data.
    """

    scale: float = field(default=1.0, validator=validators.gt(0.0))
    clock: Literal["t", "1-t"] = field(default="t", validator=validators.in_(("t", "1-t")))
    predicts: Literal["ε-x", "x-ε"] = field(default="ε-x", validator=validators.in_(("ε-x", "x-ε")))

    def time(self, t: Time) -> Time:
        """In the network's units."""
        return self.scale * (t if self.clock == "t" else 1 - t)

    def t(self, time: Time) -> Time:
        """The inverse of `time`."""
        return time / self.scale if self.clock == "t" else 1 - time / self.scale

    def velocity(self, prediction: Latent) -> Latent:
        return prediction if self.predicts == "ε-x" else -prediction
