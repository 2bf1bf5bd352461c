"""The diffusions whose flow maps are known: Gaussian data, and Gaussian data under classifier-free guidance.

Oracles for objectives, rollouts and samplers: at the true flow map a matching objective has no gradient, and a rollout
ends in the data. Parameters that can be moved make wrong maps. What goes in in float64 comes out in float64.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from .._types import Cache, Cond, Latent, Time
from ..model import FlowMap
from ..path import expand


def _number(value: float) -> nn.Parameter:
    """[] float64: among tensors that have dimensions it takes their dtype."""
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


class GaussianFlowMap(FlowMap):
    """The mean velocity of data N(mean, std²), every element on its own:

        Φ_{r←t}(z) = (1 - r) m + (σ_r / σ_t) (z - (1 - t) m),      σ_t² = (1 - t)² s² + t²,
        u(z, t, r) = -m + a (z - (1 - t) m),                       a = (1 - σ_r / σ_t) / (t - r).

    a is written without the division, so the diagonal is no special case. mean, std: what the data are; moved, the
    map is that of other data. scale, bias: u becomes scale · u + bias, which is no flow map at all.
    """

    def __init__(self, mean: float = 0.5, std: float = 0.5, scale: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.mean, self.std, self.scale, self.bias = map(_number, (mean, std, scale, bias))

    def sigma(self, t: Time) -> Tensor:
        """The standard deviation of z_t."""
        return (((1 - t) * self.std) ** 2 + t**2).sqrt()

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        now, then = self.sigma(t), self.sigma(r)
        a = (t + r - self.std**2 * (2 - t - r)) / (now * (now + then))
        u = expand(a, z) * (z - expand(1 - t, z) * self.mean) - self.mean
        return self.scale * u + self.bias


class GuidedGaussianFlowMap(FlowMap):
    """The mean velocity of the guided field v_∅ + w (v_c - v_∅), of v_∅ itself where the prompt is dropped.

    cond["label"] [B] is 1 for the condition c, whose data are N(mean, std²), and 0 for ∅: N(null_mean, null_std²).
    Guidance makes no distribution, but each field is linear, v = A z + b, and so is its flow map:

        Φ_{r←t}(z) = P z + q,   ln P = ∫_t^r A,   A = (1 - w) d/dt ln σ_∅ + w d/dt ln σ_c,

    integrated by Gauss-Legendre quadrature, to round-off. w = 1 is the conditional flow map. scale, bias: wrong ones.
    """

    def __init__(
        self,
        mean: float = 1.0,
        std: float = 0.5,
        null_mean: float = 0.0,
        null_std: float = 1.25**0.5,
        w: float = 3.0,
        scale: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.means, self.stds, self.w = (null_mean, mean), (null_std, std), w
        self.scale, self.bias = map(_number, (scale, bias))

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        w = self.w * cond["label"].to(t)  # 0 gives v_∅
        x, weight = (torch.as_tensor(part, dtype=t.dtype, device=t.device) for part in quadrature())
        s = r[:, None] + (t - r)[:, None] * x  # [B, nodes]
        slope, offset = self._field(s, w[:, None])
        mean_slope = (weight * slope).sum(1)
        growth = self._growth(s, r[:, None], w[:, None])  # P from s down to r
        log = -(t - r) * mean_slope
        small = log.abs() < 1e-4
        ratio = torch.where(small, 1 + log / 2 + log**2 / 6, torch.expm1(log) / torch.where(small, 1.0, log))
        u = expand(mean_slope * ratio, z) * z + expand((weight * growth * offset).sum(1), z)
        return self.scale * u + self.bias

    def _field(self, s: Time, w: Tensor) -> tuple[Tensor, Tensor]:
        """(A, b) of the guided velocity A z + b."""
        parts = []
        for m, c in zip(self.means, self.stds, strict=True):
            a = (s - (1 - s) * c**2) / self._variance(s, c)
            parts.append((a, -m - a * (1 - s) * m))
        (a_null, b_null), (a, b) = parts
        return a_null + w * (a - a_null), b_null + w * (b - b_null)

    def _growth(self, s: Time, r: Time, w: Tensor) -> Tensor:
        """exp ∫_s^r A = (σ_∅(r) / σ_∅(s))^(1 - w) (σ_c(r) / σ_c(s))^w."""
        null, c = ((self._variance(r, std) / self._variance(s, std)).sqrt() for std in self.stds)
        return null ** (1 - w) * c**w

    @staticmethod
    def _variance(t: Time, std: float) -> Tensor:
        return ((1 - t) * std) ** 2 + t**2


@cache
def quadrature(nodes: int = 48) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    return ((x + 1) / 2).tolist(), (weight / 2).tolist()
