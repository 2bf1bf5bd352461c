"""A step of a walk, from t to r, by what a network gives: `flowmap.rollout` takes them one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from ._types import Cache, Cond, Latent, Rng, Time
from .experts import phased_step
from .model import FlowMap, Kind, Wrapped
from .path import renoise

JUMP = 0x70B
"""In the key of the stream that draws one of several steps: forks by a small number are anybody's."""
Step: TypeAlias = Callable[[FlowMap, Latent, Time, Time, Cond, Cache, Rng], Latent]


def ode_step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """Follow the flow: Φ_{r←t}(z)."""
    return u.jump(z, t, r, cond, cache)


def euler_step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """Follow the velocity at t: z - (t - r) u(z, t, t), one Euler step of a network that knows one time."""
    return z - (t - r).reshape(-1, *(1,) * (z.ndim - 1)) * u(z, t, t, cond, cache)


def consistency_step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """Jump to data, then noise again to r. Consistency models, arXiv:2303.01469, algorithm 1."""
    return restart_step(1.0)(u, z, t, r, cond, cache, rng)


def restart_step(gamma: float) -> Step:
    """Jump to (1 - γ) r, then noise again to r: γ = 0 follows the flow, γ = 1 is the consistency sampler.

    γ-sampling, arXiv:2310.02279, section 4.
    """

    def step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
        below = (1 - gamma) * r
        z = u.jump(z, t, below, cond, cache)
        return z if gamma == 0 else renoise(z, rng.noise_like(z), below, r)

    return step


class Counted(Wrapped):
    """`u` whose gradient counts n times; n = 0: u without a graph, a constant of whatever it is part of."""

    def __init__(self, u: FlowMap, n: int) -> None:
        super().__init__(u)
        self.n = n

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        if self.n == 0:
            with torch.no_grad():
                return self.u(z.detach(), t, r, cond, cache)
        v = self.u(z, t, r, cond, cache)
        return v.detach() + self.n * (v - v.detach())


def one_of(u: FlowMap, n: int, rng: Rng) -> list[FlowMap]:
    """u for each of n steps: one, drawn by a fork of `rng`, has a graph, which counts n times."""
    drawn = rng.fork(JUMP).randint(n)
    return [Counted(u, n if i == drawn else 0) for i in range(n)]


STEPS: Mapping[Kind, Step] = {
    "euler": euler_step, "flow_map": ode_step, "consistency": consistency_step, "phased": phased_step,
}  # fmt: skip
"""By `Sampling.kind`."""
