"""Eight Gaussians on a circle as a backbone: small enough that every quantity has a reference.

The teacher is exact: for the mixture Σ π_k N(m_k, s² I) and D = (1 - t)² s² + t²,

    w_k(z) ∝ π_k N(z; (1 - t) m_k, D I),    v(z, t) = Σ_k w_k [ -m_k + ((t - (1 - t) s²) / D) (z - (1 - t) m_k) ].

Student and critic are small MLPs. A point of the plane is a latent of one frame, two channels, one pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self, cast

import torch
from attrs import evolve, field, frozen, validators
from safetensors.torch import load_file
from torch import Tensor, nn

from flowmap import FlowMap, FlowMapSpec, Rng
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.model import sha256
from flowmap.rollout import sample

SHAPE = (1, 2, 1, 1)  # F, C, H, W


def latents(points: Tensor) -> Latent:
    """[B, 2] -> [B, 1, 2, 1, 1]."""
    return points.reshape(-1, *SHAPE)


@frozen
class Mixture:
    """`modes` Gaussians of width `std` on a circle; the odd ones weigh `ratio` times what the even ones weigh."""

    modes: int = 8
    radius: float = 1.5
    std: float = 0.08
    ratio: float = 2.0

    @property
    def means(self) -> Tensor:
        """[modes, 2]."""
        angle = torch.arange(self.modes) * (2 * math.pi / self.modes)
        return self.radius * torch.stack([angle.cos(), angle.sin()], 1)

    @property
    def weights(self) -> Tensor:
        """[modes], of sum one."""
        weights = torch.ones(self.modes)
        weights[1::2] = self.ratio
        return weights / weights.sum()

    def draw(self, n: int, rng: Rng) -> Tensor:
        """[n, 2] independent samples."""
        u = rng.uniform(n, self.means)
        return self._at(torch.bucketize(u, self.weights.cumsum(0)[:-1]), rng)

    def draw_stratified(self, n: int, rng: Rng) -> Tensor:
        """[n, 2], every mode with exactly its share: a reference without the noise of the counts."""
        shares = self.weights.double() * n
        counts = shares.round().long()
        if (shares - counts).abs().max() > 1e-6 * n:
            raise ValueError(f"n = {n}: the modes' shares {self.weights.tolist()} of it must be whole")
        return self._at(torch.arange(self.modes).repeat_interleave(counts), rng)

    def _at(self, mode: Tensor, rng: Rng) -> Tensor:
        means = self.means[mode]
        return means + self.std * rng.noise_like(means)


class ExactVelocity(FlowMap):
    """The mixture's own velocity. It has one time: r is not read."""

    means: Tensor
    log_weights: Tensor

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.var = mixture.std**2
        self.register_buffer("means", mixture.means, persistent=False)
        self.register_buffer("log_weights", mixture.weights.log(), persistent=False)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        z2, t = z.reshape(-1, 2), t[:, None]
        D = (1 - t) ** 2 * self.var + t**2
        # log N(z; (1 - t) m_k, D) up to what all modes share
        logits = ((1 - t) * (z2 @ self.means.T) - (1 - t) ** 2 * self.means.square().sum(1) / 2) / D
        m = (self.log_weights + logits).softmax(1) @ self.means
        return ((t - (1 - t) * self.var) / D * (z2 - (1 - t) * m) - m).reshape_as(z)


class Mlp(FlowMap):
    """u_θ(z, t, r): an MLP of the point and of sinusoidal features of t and t - r."""

    frequencies: Tensor

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 2 * torch.tensor([0.5, 1, 2, 4, 8]), persistent=False)
        widths = [2 + 4 * len(self.frequencies), *[width] * depth]
        self.hidden = nn.ModuleList([nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(widths)])
        self.out = nn.Linear(width, 2)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        start, gap = t[:, None] * self.frequencies, (t - r)[:, None] * self.frequencies
        h = torch.cat([z.reshape(-1, 2), start.sin(), start.cos(), gap.sin(), gap.cos()], 1)
        for block in self.hidden:
            h = block(h)
        return self.out(h).reshape_as(z)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.hidden)

    @torch.no_grad()
    def lift(self) -> None:
        """Give what was trained on the diagonal its second time: u(z, t, r) becomes u(z, t, t), whatever r is."""
        first, n = cast(nn.Linear, cast(nn.Sequential, self.hidden[0])[0]), len(self.frequencies)
        first.bias += first.weight[:, -n:].sum(1)  # at r = t the sines of the gap are 0, its cosines 1
        first.weight[:, -2 * n :] = 0.0


@frozen
class Mixture2D(FlowMapSpec):
    """The backbone: an exact teacher, MLPs for student and critic.

    start: a directory that `save` wrote, whose network student and critic begin as; they begin at random without.
    """

    mixture: Mixture = Mixture()
    width: int = field(default=128, validator=validators.ge(1))
    depth: int = field(default=4, validator=validators.ge(1))
    seed: int = 0
    start: Path | None = field(default=None, repr=False)

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        return {role: self._network(role).to(device) for role in roles}

    def _network(self, role: Role) -> FlowMap:
        if role == "teacher":
            return ExactVelocity(self.mixture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2 * self.seed + (role == "critic"))
            net = Mlp(self.width, self.depth)
        if self.start is not None:
            net.load_state_dict(load_file(self.start / "model.safetensors"))
        return net

    def fingerprint(self) -> str | None:
        return None if self.start is None else sha256(load_file(self.start / "model.safetensors"))

    def tiny(self) -> Self:
        return evolve(self, width=16, depth=2, start=None)

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return latents(self.mixture.draw(batch, Rng.seeded(0))), {}


def rk4_step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """A step of the classical Runge-Kutta method along the velocity u(z, t, t)."""
    h, mid = (r - t).reshape(-1, 1, 1, 1, 1), (t + r) / 2
    k1 = u(z, t, t, cond)
    k2 = u(z + h / 2 * k1, mid, mid, cond)
    k3 = u(z + h / 2 * k2, mid, mid, cond)
    k4 = u(z + h * k3, r, r, cond)
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def ode_endpoints(mixture: Mixture, noise: Latent, steps: int = 200) -> Latent:
    """Where the mixture's probability-flow ODE takes `noise`."""
    return sample(ExactVelocity(mixture), noise, {}, steps, step=rk4_step)
