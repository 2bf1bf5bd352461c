"""Gaussian videos in chunks, whose flow maps are known: one frame a chunk, one number a frame.

x¹ = s ε¹,  x^k = ρ x^{k-1} + √(1 - ρ²) ε^k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowmap import FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.window import Window


def _number(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


class Chain(FlowMap):
    """Chunk after chunk: N(read · h, std²) after the memory h, which `extend` writes: h ← write · x + keep · h.

    The exact flow map of it, Φ_{r←t}(z) = (1 - r) m + (σ_r / σ_t) (z - (1 - t) m); the first chunk's m is 0 and its
    std `first`. Teacher-forced, or packed, every chunk has the m that the clean ones before it make. scale: of u.
    """

    def __init__(
        self, read: float = 0.8, write: float = 1.0, keep: float = 0.0, std: float = 0.6, first: float = 1.0
    ) -> None:
        super().__init__()
        self.read, self.write, self.keep = map(_number, (read, write, keep))
        self.std, self.first, self.scale = map(_number, (std, first, 1.0))
        self.window: Window | None = None

    def chunks(self, frames: int) -> tuple[int, ...]:
        return (1,) * frames

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        h = self.write * x
        return h if cache is None else h + self.keep * cache

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        """What is left of z_t is (1 - t) x: it is told t, and undoes that."""
        return self.extend(cache, z / (1 - t.to(z).reshape(-1, *(1,) * (z.ndim - 1))), cond)

    def packed(self, x: Latent, cond: Cond) -> Cond | None:
        return {**cond, "clean": x}

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        return x, {**cond, "clean": x}

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        first, m = cache is None, torch.zeros_like(z) if cache is None else self.read * cache
        s = (self.first if first else self.std).expand(z.shape[1])
        if "clean" in cond:
            h, means = None, []
            for x in cond["clean"].split(1, dim=1):
                means.append(torch.zeros_like(x) if h is None else self.read * h)
                h = self.extend(h, x, cond)
            m, s = torch.cat(means, 1), torch.cat([self.first[None], self.std.expand(z.shape[1] - 1)])
        t, r = (a.to(z).reshape(-1, *(1,) * (z.ndim - 1)) for a in (t, r))
        s = s.reshape(1, -1, *(1,) * (z.ndim - 2))
        now, then = (((1 - a) ** 2 * s**2 + a**2).sqrt() for a in (t, r))
        slope = (t + r - s**2 * (2 - t - r)) / (now * (now + then))
        return self.scale * (slope * (z - (1 - t) * m) - m)


class Joint(FlowMap):
    """All frames at once, N(0, Σ) over them: Φ_{r←t}(z) = S_r^½ S_t^-½ z, S_t = (1 - t)² Σ + t²; z [B, F, 1, 1, 1]."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        self.values, self.vectors = torch.linalg.eigh(covariance.double())

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        y = z.flatten(1).double() @ self.vectors
        t, r = t.double()[:, None], r.double()[:, None]
        now, then = (((1 - a) ** 2 * self.values + a**2).sqrt() for a in (t, r))
        slope = (t + r - self.values * (2 - t - r)) / (now * (now + then))
        return ((slope * y) @ self.vectors.T).reshape(z.shape).to(z.dtype)


def covariance(rho: float, frames: int = 2) -> Tensor:
    """ρ^|j - k|."""
    k = torch.arange(frames, dtype=torch.float64)
    return rho ** (k[:, None] - k[None]).abs()


def drawn(n: int, frames: int = 2, seed: int = 0, **how: Any) -> Latent:
    """Standard normal [n, F, 1, 1, 1], float64."""
    return Rng.seeded(seed).noise_like(torch.zeros(n, frames, 1, 1, 1, dtype=torch.float64))
