"""Generating samples: the same walk for sampling, on-policy training and export."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch
from attrs import field, frozen, validators
from torch import Tensor

from ._types import Cache, Cond, Latent, Rng, Time
from .model import FlowMap
from .path import renoise, shift

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


def guided_euler_step(w: float, null: Cond) -> Step:
    """An Euler step of the teacher's ODE under classifier-free guidance: two calls, batched as one."""

    def step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
        return z - (t - r).reshape(-1, *(1,) * (z.ndim - 1)) * u.velocity(z, t, cond, null, w)

    return step


def euler_grid(steps: int, s: float = 1.0) -> Tensor:
    """(1 = t_0, ..., t_steps = 0), t_i = shift(1 - i / steps), float32."""
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    return shift(torch.linspace(1, 0, steps + 1), s)


def walk(
    u: FlowMap,
    noise: Latent,
    cond: Cond,
    grid: Tensor,
    rng: Rng,
    *,
    step: Step = ode_step,
    grad_last: int | None = None,
) -> Latent:
    """Take `noise` down `grid` = (1, ..., 0), chunk by chunk; the last `grad_last` steps of each chunk carry gradients.

    Between chunks gradients stop: the history is a snapshot of finished, detached chunks.
    """
    steps, cache, done = len(grid) - 1, None, []
    chunks = noise.split(u.chunks(noise.shape[1]), dim=1)
    for k, z in enumerate(chunks):
        for i, (t, r) in enumerate(pairwise(grid)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and (grad_last is None or i >= steps - grad_last)):
                z = step(u, z, t.expand(len(z)), r.expand(len(z)), cond, cache, rng)
        done.append(z)
        if k + 1 < len(chunks):
            with torch.no_grad():
                cache = u.extend(cache, z.detach(), cond)
    return torch.cat(done, dim=1)


@torch.no_grad()
def sample(
    u: FlowMap,
    noise: Latent,
    cond: Cond,
    steps: int = 4,
    *,
    shift: float = 1.0,
    step: Step = ode_step,
    rng: Rng | None = None,
) -> Latent:
    """Any-step sampling: z_1 -> x in `steps` jumps on the shifted grid; the state is float32 throughout."""
    grid = euler_grid(steps, shift).to(noise.device)
    return walk(
        u, noise.to(torch.promote_types(noise.dtype, torch.float32)), cond, grid, rng or Rng.seeded(0), step=step
    )


class Rollout(Protocol):
    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent: ...


def _grid(steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(steps)


def _budgets(instance: object, attribute: object, steps: tuple[int, ...]) -> None:
    if not steps or min(steps) < 1:
        raise ValueError(f"steps = {steps}: must name at least one budget, each at least 1")


@frozen
class FlowMapBackwardSimulation:
    """An n-step walk collapsed into 1 -> t_i -> t_{i+1} -> 0: at most three jumps, all differentiable.

    n from `steps` and i < n are drawn anew each time, the same on every rank; the jumps before and after the i-th
    step stand in for the steps that a full walk would take, so the cost does not grow with n. E[calls] = 3 - 2 / n
    for n >= 2. AnyFlow, arXiv:2605.13724.
    """

    steps: tuple[int, ...] = field(default=(2, 4, 8, 16, 50), converter=_grid, validator=_budgets)
    shift: float = field(default=5.0, validator=validators.gt(0.0))

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        grid = euler_grid(self.steps[rng.randint(len(self.steps))], self.shift)
        i = rng.randint(len(grid) - 1)
        corners = torch.stack([grid[0], grid[i], grid[i + 1], grid[-1]]).unique().flip(0)
        return walk(u, noise, cond, corners.to(noise.device), rng)


@frozen
class ConsistencySimulation:
    """Stop at a random step of a fixed schedule and jump to data; only that jump is differentiable.

    `times` are the noise levels before the final 0, decreasing from 1.
    DMD2, arXiv:2405.14867; Self-Forcing, arXiv:2506.08009, algorithm 1.
    """

    times: tuple[float, ...] = field(default=(1.0, 0.9375, 0.8333, 0.625), converter=tuple)

    @times.validator
    def _decreasing(self, attribute: object, times: tuple[float, ...]) -> None:
        if not times or times[0] != 1.0 or any(a <= b for a, b in pairwise((*times, 0.0))):
            raise ValueError(f"ConsistencySimulation.times = {times}: must decrease strictly from 1.0 and stay above 0")

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        grid = torch.tensor([*self.times[: rng.randint(len(self.times)) + 1], 0.0])
        return walk(u, noise, cond, grid.to(noise.device), rng, step=consistency_step, grad_last=1)
