"""Two experts of one time that jump to the end of their own phase: the steps of FastVideo's CausalWan2.2, again.

Data are ±6 with weights .8 and .2 and a spread of .3, and both networks are exact: so what a sampler does wrong is seen
in the shares of the modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from flowmap import FlowMap, sample
from flowmap._types import Cache, Cond, Latent, Rng, Time
from flowmap.experts import TwoExperts, phased_step
from flowmap.path import expand, renoise
from flowmap.path import shift as shifted
from flowmap.rollout import STEPS, Step, consistency_step
from flowmap.testing import GaussianFlowMap
from flowmap.times import euler_grid

B, COUNT = 0.875, 20_000
MODES, SHARES, SPREAD = torch.tensor([-6.0, 6.0]).double(), torch.tensor([0.2, 0.8]).double(), 0.3
LEVELS = shifted(torch.tensor([1000, 850, 700, 550, 350, 275, 200, 125]) / 1000, 12.0)
GRID = torch.cat([LEVELS, torch.zeros(1)])


def below(z: Tensor, t: float) -> Tensor:
    """P(z_t < z)."""
    parts = torch.distributions.Normal((1 - t) * MODES, (((1 - t) * SPREAD) ** 2 + t**2) ** 0.5)
    return (SHARES * parts.cdf(z[..., None])).sum(-1)


def exact(z: Tensor, t: float, r: float) -> Tensor:
    """Φ_{r←t}: on a line the flow keeps quantiles."""
    p, low, high = below(z, t), torch.full_like(z, -20.0), torch.full_like(z, 20.0)
    for _ in range(45):
        middle = (low + high) / 2
        under = below(middle, r) < p
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2


class To(FlowMap):
    """Told one time, it jumps from there to `end`."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end, self.asked = end, list[float]()

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.asked.append(at := float(t[0]))
        return (z - exact(z, at, self.end)) / (at - self.end)


class ByTime(FlowMap):
    """The high one for t >= b, taken for one that jumps to data."""

    high, low = To(B), To(0.0)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return (self.high if t[0] >= B else self.low)(z, t, r, cond)


def pair() -> TwoExperts:
    return TwoExperts(To(B), To(0.0), B)


def draws(like: Tensor) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(5)
    while True:
        yield torch.randn(like.shape, generator=generator, dtype=like.dtype)


class Drawn(Rng):
    """One and the same stream for every chunk."""

    def __init__(self, like: Tensor) -> None:
        self.drawn = draws(like)

    def fork(self, *key: int) -> Drawn:
        return self

    def noise_like(self, z: Tensor) -> Tensor:
        return next(self.drawn)


NOISE = torch.randn(COUNT, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def made(u: FlowMap, step: Step, grid: Tensor = GRID) -> Tensor:
    return sample(u, NOISE, {}, grid=grid, step=step, rng=Drawn(NOISE))


@cache
def published() -> Tensor:
    z, noise = NOISE, draws(NOISE)
    for sigma, then in pairwise(GRID.tolist()):
        if sigma >= B:
            z, eps = exact(z, sigma, B), next(noise)  # z - (σ - σ_b) u
            if then >= B:
                alpha = (1 - then) / (1 - B)
                z = alpha * z + (then**2 - alpha**2 * B**2) ** 0.5 * eps
        else:
            z = (1 - then) * exact(z, sigma, 0.0) + then * next(noise)
    return z


def moments(x: Tensor) -> tuple[float, float, float]:
    """(the share of the mode at 6, mean, standard deviation)."""
    return float((x > 0).double().mean()), float(x.mean()), float(x.std())


def right(x: Tensor) -> bool:
    share, mean, std = moments(x)
    return abs(share - 0.8) < 0.008 and abs(mean - 3.6) < 0.09 and abs(std - 4.809) < 0.06


def test_the_steps_are_the_published_ones() -> None:
    u = pair()
    x = made(u, STEPS["phased"])
    torch.testing.assert_close(x, published(), atol=1e-4, rtol=0)
    assert [*u.high.asked, *u.low.asked] == LEVELS.tolist() and len(u.high.asked) == 4
    assert right(x), moments(x)


def to_data(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    return consistency_step(ByTime(), z, t, r, cond, cache, rng)


def plain_noise(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """As if z_b were data."""
    end = torch.where(t > B, B, torch.zeros_like(t))
    z, eps = u.jump(z, t, end, cond, cache), rng.noise_like(z)
    return expand(1 - r, z) * z + expand(r, z) * eps if bool((r > B).all() or (t < B).all()) else z


def noise_between(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """New noise for the low one, too: down to r and up again to b."""
    end = torch.where((t > B) & (r >= B), B, torch.zeros_like(t))
    return renoise(u.jump(z, t, end, cond, cache), rng.noise_like(z), end, r)


@pytest.mark.parametrize("plant", [to_data, plain_noise, noise_between])
def test_other_steps_are_seen(plant: Step) -> None:
    x = made(pair(), plant)
    assert (x - published()).abs().mean() > 0.1
    if plant is not noise_between:  # which is exact, too, and yet not what the low one is given
        assert not right(x), moments(x)


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_at_another_number_of_steps_the_boundary_is_a_level_and_the_low_ones(steps: int) -> None:
    u, grid = pair(), euler_grid(steps, 12.0, B)
    x = made(u, phased_step, grid)
    assert [*u.high.asked, *u.low.asked] == grid[:-1].tolist() and u.low.asked[0] == B
    assert right(x), moments(x)


def test_the_last_step_ends_at_data() -> None:
    assert right(x := made(pair(), phased_step, torch.tensor([1.0, 0.95, 0.0]))), moments(x)


def test_of_one_network_it_is_the_consistency_sampler() -> None:
    u = GaussianFlowMap(0.5, 0.3)
    assert torch.equal(made(u, phased_step, euler_grid(4)), made(u, consistency_step, euler_grid(4)))
