"""The oracles obey the definitions of a flow map, in float64: methods that are tested with them can trust them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowmap import FlowMap, Rng
from flowmap.testing import GaussianFlowMap, GuidedGaussianFlowMap

MEAN, STD = 0.5, 0.3
pairs = st.tuples(st.floats(0.0, 0.99), st.floats(0.01, 1.0)).map(sorted)


def oracle(kind: str) -> FlowMap:
    u = GaussianFlowMap(MEAN, STD) if kind == "gaussian" else GuidedGaussianFlowMap()
    return u.requires_grad_(False)


def state(n: int = 5) -> tuple[Tensor, dict[str, Tensor]]:
    z = torch.linspace(-2, 2, n, dtype=torch.float64)[:, None]
    return z, {"label": torch.arange(n) % 2}


def times(n: int, *values: float) -> list[Tensor]:
    return [torch.full((n,), value, dtype=torch.float64) for value in values]


KINDS = pytest.mark.parametrize("kind", ["gaussian", "guided"])


@KINDS
@given(rt=pairs)
def test_the_map_solves_the_ode(kind: str, rt: list[float]) -> None:
    """Fourth-order Runge-Kutta down the velocity u(z, t, t) ends where the jump ends."""
    u, (z, c) = oracle(kind), state()
    r, t = rt
    x, n = z, 60
    for k in range(n):
        a, b = (t + (r - t) * (k + i) / n for i in (0, 1))
        h, mid = b - a, (a + b) / 2

        def v(x: Tensor, s: float) -> Tensor:
            (s_,) = times(len(x), s)
            return u(x, s_, s_, c)

        k1 = v(x, a)
        k2 = v(x + h / 2 * k1, mid)
        k3 = v(x + h / 2 * k2, mid)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + v(x + h * k3, b))
    torch.testing.assert_close(u.jump(z, *times(len(z), t, r), c), x, atol=1e-5, rtol=1e-5)


@KINDS
@given(rt=pairs, part=st.floats(0, 1))
def test_two_jumps_are_one(kind: str, rt: list[float], part: float) -> None:
    u, (z, c) = oracle(kind), state()
    t, s, r = times(len(z), rt[1], rt[0] + part * (rt[1] - rt[0]), rt[0])
    torch.testing.assert_close(u.jump(u.jump(z, t, s, c), s, r, c), u.jump(z, t, r, c), atol=1e-9, rtol=1e-9)


@KINDS
@given(rt=pairs)
def test_the_mean_velocity_obeys_its_identity(kind: str, rt: list[float]) -> None:
    """u = v - (t - r) D u, with D along the flow (MeanFlow)."""
    u, (z, c) = oracle(kind), state()
    t, r = times(len(z), rt[1], rt[0])
    v = u(z, t, t, c)
    du = torch.func.jvp(lambda z, t: u(z, t, r, c), (z, t), (v, torch.ones_like(t)))[1]
    torch.testing.assert_close(u(z, t, r, c), v - (t - r)[:, None] * du, atol=1e-9, rtol=1e-9)


@KINDS
@given(rt=pairs)
def test_the_end_of_a_jump_moves_with_the_velocity_there(kind: str, rt: list[float]) -> None:
    """∂_r Φ_{r←t}(z) = v(Φ, r) (Lagrange)."""
    u, (z, c) = oracle(kind), state()
    t, r = times(len(z), rt[1], rt[0])
    moved = torch.func.jvp(lambda r: u.jump(z, t, r, c), (r,), (torch.ones_like(r),))[1]
    x = u.jump(z, t, r, c)
    torch.testing.assert_close(moved, u(x, r, r, c), atol=1e-9, rtol=1e-9)


@KINDS
@given(t=st.floats(0.05, 1.0))
def test_the_mean_velocity_is_continuous_onto_the_diagonal(kind: str, t: float) -> None:
    u, (z, c) = oracle(kind), state()
    now, below = times(len(z), t, t - 1e-7)
    torch.testing.assert_close(u(z, now, below, c), u(z, now, now, c), atol=1e-5, rtol=1e-5)


def test_the_gaussian_velocity_is_the_mean_of_noise_minus_data() -> None:
    """E[ε - x | z_t] by regression on samples, which must be affine with the closed form's coefficients."""
    n, t = 200_000, 0.4
    rng = Rng.seeded(0)
    like = torch.zeros(n, 1, dtype=torch.float64)
    x, noise = MEAN + STD * rng.noise_like(like), rng.noise_like(like)
    z = (1 - t) * x + t * noise
    design = torch.cat([z, torch.ones_like(z)], 1)
    fit = torch.linalg.lstsq(design, noise - x).solution[:, 0]
    at = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    v0, v1 = oracle("gaussian")(at, *times(2, t, t), {})[:, 0]
    torch.testing.assert_close(fit, torch.stack([v1 - v0, v0]), atol=0.02, rtol=0)


def test_a_jump_from_noise_ends_in_the_data() -> None:
    z = Rng.seeded(0).noise_like(torch.zeros(50_000, 1, dtype=torch.float64))
    x = oracle("gaussian").jump(z, *times(len(z), 1.0, 0.0), {})
    torch.testing.assert_close(x, MEAN + STD * z)


def test_a_guided_jump_ends_where_guidance_ends() -> None:
    """1.400 ± 0.100 for w = 3 on N(1, ½²) and N(0, 1.25): the guided field's samples, not the data's."""
    u = oracle("guided")
    z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    mean, one = u.jump(z, *times(2, 1.0, 0.0), {"label": torch.ones(2)})[:, 0]
    assert round(float(mean), 3) == 1.4
    assert round(float(one - mean), 3) == 0.1


@given(rt=pairs)
def test_without_guidance_the_guided_map_is_the_gaussian_one(rt: list[float]) -> None:
    z, _ = state()
    t, r = times(len(z), rt[1], rt[0])
    guided = GuidedGaussianFlowMap(w=1.0)(z, t, r, {"label": torch.ones(len(z))})
    torch.testing.assert_close(guided, GaussianFlowMap(1.0, 0.5)(z, t, r, {}), atol=1e-9, rtol=1e-9)
    null = GuidedGaussianFlowMap(w=3.0)(z, t, r, {"label": torch.zeros(len(z))})
    torch.testing.assert_close(null, GaussianFlowMap(0.0, 1.25**0.5)(z, t, r, {}), atol=1e-9, rtol=1e-9)


def test_wrong_maps_are_wrong() -> None:
    z, _ = state()
    t, r = times(len(z), 0.9, 0.2)
    right = GaussianFlowMap()(z, t, r, {})
    for wrong in (GaussianFlowMap(scale=1.1), GaussianFlowMap(bias=0.1), GaussianFlowMap(mean=0.6)):
        assert not torch.allclose(wrong(z, t, r, {}), right)
