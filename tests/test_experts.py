"""Two experts as one flow map: exact where each is exact on its own side, whatever it says on the other's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowmap import FlowMap, Rng, sample
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.experts import TwoExperts
from flowmap.guidance import Guided
from flowmap.path import expand
from flowmap.rollout import consistency_step, euler_step
from flowmap.testing import CountingFlowMap, GaussianFlowMap
from flowmap.times import euler_grid
from tests.toys import Toy

B = 0.875
EXACT = GaussianFlowMap(0.5, 0.3)
NONSENSE = 7.0


class Above(FlowMap):
    """Right for t >= r >= b, and nonsense elsewhere."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return torch.where(expand(r >= B, z), EXACT(z, t, r, cond), torch.full_like(z, NONSENSE))


class Below(FlowMap):
    """Right for b >= t >= r."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return torch.where(expand(t <= B, z), EXACT(z, t, r, cond), torch.full_like(z, NONSENSE))


class ByTAlone(FlowMap):
    """As a sampler of a diffusion model dispatches."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return torch.where(expand(t >= B, z), Above()(z, t, r, cond), Below()(z, t, r, cond))


class Unclipped(FlowMap):
    """A composition whose high expert is asked for r itself."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        above = Above()(z, t.clamp_min(B), torch.where(t > B, r, r.clamp_min(B)), cond)
        first, then = t.clamp_min(B) - r.clamp_min(B), t.clamp_max(B) - r.clamp_max(B)
        under = Below()(z - expand(first, z) * above, t.clamp_max(B), r.clamp_max(B), cond)
        return (expand(first, z) * above + expand(then, z) * under) / expand(t - r, z)


def pair() -> TwoExperts:
    return TwoExperts(Above(), Below(), B)


def noise(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return Rng.seeded(3).noise_like(torch.zeros(n, 4, dtype=torch.float64)).to(dtype)


TIMES = st.one_of(st.sampled_from([0.0, 0.5, B, 1.0]), st.floats(0.0, 1.0, width=32))


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=6))
def test_the_composition_is_the_flow_map(pairs):
    t, r = (torch.tensor([f(p) for p in pairs], dtype=torch.float64) for f in (max, min))
    z = noise(len(t))
    exact = EXACT(z, t, r, {})
    # where t - r is tiny the two shares are rounded, the step that they make is not
    assert torch.allclose(pair().jump(z, t, r, {}), EXACT.jump(z, t, r, {}), atol=1e-12)
    assert torch.allclose(pair()(z, t, r, {}), exact, atol=1e-8)


def test_u_of_a_jump_across_the_boundary_is_that_of_where_it_ends():
    """z_r = z_t - (t - r) u, in float32 as in a sampler."""
    t, r = torch.tensor([1.0, 0.9, 0.99]), torch.tensor([0.0, 0.87, 0.3])
    z = noise(3, torch.float32)
    z_b = z - expand(t - B, z) * Above()(z, t, torch.full_like(t, B), {})
    z_r = z_b - expand(B - r, z) * Below()(z_b, torch.full_like(t, B), r, {})
    assert torch.allclose(z - expand(t - r, z) * pair()(z, t, r, {}), z_r, atol=1e-6)


@pytest.mark.parametrize("wrong", [ByTAlone, Unclipped])
def test_dispatch_by_t_alone_and_an_end_that_is_not_clipped_are_wrong_for_jumps_that_cross(wrong):
    z, t, r = noise(2), torch.tensor([1.0, 0.9]).double(), torch.tensor([0.0, 0.5]).double()
    assert torch.allclose(pair()(z, t, r, {}), EXACT(z, t, r, {}))
    assert (wrong()(z, t, r, {}) - EXACT(z, t, r, {})).abs().max() > 0.1


def test_each_is_asked_on_its_own_side_alone_and_once():
    """Nothing is computed that is not needed, where a whole batch lies on one side."""
    high, low = CountingFlowMap(Above()), CountingFlowMap(Below())
    u = TwoExperts(high, low, B)
    for t, r, calls in ((1.0, B, (1, 0)), (0.9, 0.9, (1, 0)), (B, B, (1, 0)), (B, 0.0, (0, 1)), (0.4, 0.4, (0, 1))):
        high.reset(), low.reset()
        with torch.no_grad():
            u(noise(1), torch.full((1,), t), torch.full((1,), r), {})
        assert (high.plain, low.plain) == calls, (t, r)


@pytest.mark.parametrize("steps", [2, 3, 4, 8, 50])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_any_number_of_steps_ends_in_the_data(steps, shift):
    z = noise(64)
    ones, zeros = torch.ones(64).double(), torch.zeros(64).double()
    made = sample(pair(), z, {}, steps, shift=shift)
    assert torch.allclose(made, EXACT.jump(z, ones, zeros, {}), atol=1e-6)  # the grid is float32
    assert (sample(ByTAlone(), z, {}, steps, shift=shift) - made).abs().max() > 0.02, "a grid without the boundary"
    other = TwoExperts(Above(), Below(), 0.5)  # not the boundary that the experts have
    assert (sample(other, z, {}, steps, shift=shift) - made).abs().max() > 0.02


@pytest.mark.parametrize("b", [0.5, B, 0.9, 0.99])
@pytest.mark.parametrize("steps", [2, 3, 4, 8, 50])
def test_the_grid_has_the_boundary_and_even_steps_on_either_side(b, steps):
    grid = euler_grid(steps, 5.0, b)
    assert len(grid) == steps + 1 and (grid[0], grid[-1]) == (1, 0) and (grid.diff() < 0).all()
    assert b in grid.tolist() or torch.tensor(b) in grid
    before = grid / (5 - 4 * grid)
    at = int((grid - b).abs().argmin())
    for part in (before[: at + 1], before[at:]):
        assert torch.allclose(part.diff(), part.diff()[0], atol=1e-6)
    for t, r in pairwise(grid.tolist()):
        assert not r < torch.tensor(b) < t


def test_one_step_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"steps = 1: must be at least 2, as this network is two experts, which part"):
        sample(pair(), noise(1), {}, 1)


def test_other_samplers_have_the_boundary_in_their_grid_too():
    asked: list[tuple[float, float]] = []

    class Asked(FlowMap):
        boundary = B

        def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
            asked.append((float(t[0]), float(r[0])))
            return torch.zeros_like(z)

    sample(Guided(Asked(), 1.0, {}), noise(1, torch.float32), {}, 4, shift=5.0, step=euler_step)
    assert B in [t for t, _ in asked]
    asked.clear()
    sample(Asked(), noise(1, torch.float32), {}, 4, shift=5.0, step=consistency_step)
    assert [t for t, _ in asked][2] == B


def test_experts_in_chunks_have_a_history_each():
    z, cond = Toy().example(2)
    experts = [Toy(causal=True, seed=seed) for seed in (0, 1)]
    nets = [e.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32) for e in experts]
    u = TwoExperts(nets[0]["student"], nets[1]["student"], B)
    with torch.no_grad():
        made = sample(u, z, cond, 2)
        sizes = u.chunks(z.shape[1])
        done: list[Tensor] = []
        past: list[Cache] = [None, None]
        for part in z.split(sizes, 1):
            full = [torch.full((len(z),), s) for s in (1.0, B, 0.0)]
            x = u.low.jump(u.high.jump(part, full[0], full[1], cond, past[0]), full[1], full[2], cond, past[1])
            past = [e.extend(p, x, cond) for e, p in zip((u.high, u.low), past, strict=True)]
            done.append(x)
    assert len(sizes) > 1 and torch.allclose(made, torch.cat(done, 1), atol=1e-5)


def test_what_a_pair_is():
    high, low = GaussianFlowMap(), GaussianFlowMap()
    high.requires_grad_(False)
    low.guidance = 3.0
    u = TwoExperts(high, low, B)
    assert u.guidance is None and u.trained().keys() == {"mean", "std", "scale", "bias"}
    with pytest.raises(ValueError, match="guidance"):
        u.require_unguided(2.0)
    low.requires_grad_(False)
    u.thaw()
    assert all(p is getattr(low, name) and p.requires_grad for name, p in u.trained().items())
    with pytest.raises(ValueError, match=r"boundary = 1\.0: must be above 0 and below 1"):
        TwoExperts(high, low, 1.0)
