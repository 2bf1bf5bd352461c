"""d/dt u along the flow: exact where it can be, of second order inside, never asked where the network cannot answer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowmap._types import Cond, Latent, Time
from flowmap.derivative import (
    CentralDifference,
    Derivative,
    EndDerivative,
    EndDifference,
    EndForwardMode,
    ForwardMode,
    OneSided,
    Predicted,
)
from flowmap.testing import GaussianFlowMap

Z = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
U = GaussianFlowMap(0.5, 0.3).requires_grad_(False)


def times(*values: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.full((len(Z),), value, dtype=dtype) for value in values]


def analytic(t: Tensor, r: Tensor) -> Tensor:
    """D u = (v - u) / (t - r), which the exact flow map obeys (MeanFlow)."""
    return (U(Z, t, t, {}) - U(Z, t, r, {})) / (t - r)[:, None]


def error(derivative: Derivative, t: Tensor, r: Tensor) -> float:
    return float((derivative(U, Z, t, r, U(Z, t, t, {}), {}) - analytic(t, r)).abs().max())


@given(rt=st.tuples(st.floats(0.0, 0.9), st.floats(0.05, 1.0)).map(sorted).filter(lambda p: p[1] - p[0] > 0.05))
def test_forward_mode_is_exact(rt: list[float]) -> None:
    t, r = times(rt[1], rt[0])
    assert error(ForwardMode(), t, r) < 1e-8


@pytest.mark.parametrize("t, r", [(0.7, 0.2), (0.5, 0.0), (0.9, 0.8)])
def test_the_error_of_the_central_difference_is_quadratic(t: float, r: float) -> None:
    coarse, fine = (error(CentralDifference(h), *times(t, r)) for h in (0.02, 0.01))
    assert 3.7 < coarse / fine < 4.3


def test_the_error_of_the_one_sided_difference_is_linear() -> None:
    coarse, fine = (error(OneSided(h), *times(0.7, 0.2)) for h in (0.002, 0.001))
    assert 1.9 < coarse / fine < 2.1


@pytest.mark.parametrize("t, r", [(1.0, 0.2), (0.7, 0.699), (1.0, 0.999)])
@pytest.mark.parametrize("derivative", [CentralDifference(5e-3), OneSided(5e-3)])
def test_near_a_border_the_difference_is_still_consistent(derivative: Derivative, t: float, r: float) -> None:
    """Divided by the actual gap: by 2 h it would be off by half of itself, or more."""
    t_, r_ = times(t, r)
    assert error(derivative, t_, r_) < 0.05 * float(analytic(t_, r_).abs().max())


class Recorder:
    """A network that remembers the times it was asked for."""

    def __init__(self) -> None:
        self.t, self.r, self.z = torch.empty(0), torch.empty(0), torch.empty(0)
        self.calls = 0

    def __call__(self, z: Latent, t: Time, r: Time, cond: Cond) -> Latent:
        self.z, self.t, self.r, self.calls = z, t, r, self.calls + 1
        return z


@given(rt=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda p: p[0] < p[1]))
@pytest.mark.parametrize("derivative", [CentralDifference(0.05), OneSided(0.05)])
def test_clamped_differences_stay_between_r_and_noise(derivative: Derivative, rt: list[float]) -> None:
    u, (t, r) = Recorder(), times(rt[1], rt[0])
    derivative(u, Z, t, r, torch.ones_like(Z), {})
    assert (u.t <= 1).all() and (u.t >= u.r).all()
    assert torch.equal(u.r, torch.cat([r, r]))
    assert u.calls == 1  # both ends in one call


def test_the_reference_form_is_not_clamped() -> None:
    u = Recorder()
    CentralDifference(5e-3, clamp=False)(u, Z, *times(1.0, 0.999), torch.ones_like(Z), {})
    assert u.t.max() > 1 and (u.t < u.r).any()


@pytest.mark.parametrize("derivative", [CentralDifference(0.05), OneSided(0.05), ForwardMode()])
@pytest.mark.parametrize("t, r", [(1.0, 0.2), (0.7, 0.69), (0.6, 0.0)])
def test_a_network_linear_in_z_and_t_is_differentiated_exactly(derivative: Derivative, t: float, r: float) -> None:
    """u = 2 z + 3 t + 5 r: D u = 2 v + 3, so z is moved along v and r is not moved."""

    def u(z: Latent, t: Time, r: Time, cond: Cond) -> Latent:
        return 2 * z + (3 * t + 5 * r)[:, None]

    v = torch.linspace(0, 1, len(Z), dtype=torch.float64)[:, None]
    torch.testing.assert_close(derivative(u, Z, *times(t, r), v, {}), 2 * v + 3)


def test_the_condition_comes_along_to_both_ends() -> None:
    def u(z: Latent, t: Time, r: Time, cond: Cond) -> Latent:
        return cond["a"] * t[:, None]

    a = torch.arange(len(Z), dtype=torch.float64)[:, None]
    torch.testing.assert_close(CentralDifference()(u, Z, *times(0.5, 0.1), Z, {"a": a}), a)


def test_times_and_states_reach_a_bfloat16_network_in_float32() -> None:
    """bfloat16 above ½ knows no 0.9 ± 0.005, and loses z ± 0.005 v for a fifth of the elements."""
    u, z = Recorder(), torch.ones(7, 1)
    t, r = times(0.9, 0.1, dtype=torch.float32)
    CentralDifference(5e-3)(u, z, t, r, torch.ones_like(z), {})
    above, below = u.t.chunk(2)
    assert u.t.dtype == u.z.dtype == torch.float32
    torch.testing.assert_close(above - below, torch.full((7,), 0.01), atol=1e-7, rtol=0)
    torch.testing.assert_close(u.z[:7] - u.z[7:], torch.full((7, 1), 0.01), atol=1e-6, rtol=0)


def test_the_gap_that_is_divided_by_is_the_one_between_the_times_that_were_asked() -> None:
    """In float32 too: u = 1000 t has the derivative 1000 to seven digits, though t ± h are rounded."""

    def u(z: Latent, t: Time, r: Time, cond: Cond) -> Latent:
        return 1000 * t[:, None]

    t, r = times(0.7777777, 0.1, dtype=torch.float32)
    du = CentralDifference(1e-4)(u, Z.float(), t, r, Z.float(), {})
    torch.testing.assert_close(du, torch.full_like(du, 1000.0), atol=2.0, rtol=0)


@pytest.mark.parametrize("h", [0.0, -1.0, 0.2])
@pytest.mark.parametrize("kind", [CentralDifference, OneSided, EndDifference])
def test_a_wrong_step_is_an_error(kind: type[CentralDifference | OneSided | EndDifference], h: float) -> None:
    with pytest.raises(ValueError, match=r".h = .*: must be"):
        kind(h)


def test_predicted_runs_along_what_the_network_says_and_not_along_v() -> None:
    noisy = torch.linspace(5, 6, len(Z), dtype=torch.float64)[:, None]
    t, r = times(0.7, 0.2)
    torch.testing.assert_close(Predicted(ForwardMode())(U, Z, t, r, noisy, {}), analytic(t, r))


def end_error(derivative: EndDerivative, t: Tensor, r: Tensor) -> tuple[float, float]:
    """Of Φ and of ∂_r Φ, which is the velocity there."""
    f, df = derivative(U, Z, t, r, {})
    true = U.jump(Z, t, r, {})
    return float((f - true).abs().max()), float((df - U(true, r, r, {})).abs().max())


@given(rt=st.tuples(st.floats(0.0, 1.0), st.floats(0.05, 1.0)).map(sorted).filter(lambda p: p[1] > 0.01))
def test_forward_mode_in_the_end_time_is_exact(rt: list[float]) -> None:
    assert max(end_error(EndForwardMode(), *times(rt[1], rt[0]))) < 1e-8


@pytest.mark.parametrize("t, r", [(0.7, 0.2), (1.0, 0.5), (0.9, 0.8)])
def test_the_error_of_the_chord_in_the_end_time_is_quadratic(t: float, r: float) -> None:
    coarse, fine = (end_error(EndDifference(h), *times(t, r)) for h in (0.02, 0.01))
    for a, b in zip(coarse, fine, strict=True):
        assert 3.6 < a / b < 4.4


@pytest.mark.parametrize("t, r", [(0.7, 0.0), (0.5, 0.001), (0.7, 0.699), (1.0, 1.0)])
def test_near_a_border_the_chord_is_still_consistent(t: float, r: float) -> None:
    """Divided by the actual gap, and read at r: from its middle Φ would be off by half of h."""
    point, slope = end_error(EndDifference(5e-3), *times(t, r))
    assert point < 1e-4 and slope < 0.03 * float(U(Z, *times(r, r), {}).abs().max())


def test_the_chord_asks_for_ends_between_data_and_t_in_one_call() -> None:
    asked = []

    def u(z: Latent, t: Time, r: Time, cond: Cond) -> Latent:
        asked.append((t, r))
        return z

    EndDifference(0.05)(u, Z[:3], *(torch.tensor(v) for v in ([0.9, 0.9, 0.5], [0.4, 0.02, 0.49])), {})
    ((t, r),) = asked
    assert torch.equal(t, torch.tensor([0.9, 0.9, 0.5] * 2))
    torch.testing.assert_close(r, torch.tensor([0.45, 0.07, 0.5, 0.35, 0.0, 0.44]))


@pytest.mark.parametrize("derivative", [EndForwardMode(), EndDifference()])
def test_the_condition_comes_along_to_the_end(derivative: EndDerivative) -> None:
    """u = a r: Φ = z - (t - r) a r."""
    a = torch.arange(len(Z), dtype=torch.float64)[:, None]

    def u(z: Latent, t: Time, r: Time, cond: Cond) -> Latent:
        return cond["a"] * r[:, None]

    _, df = derivative(u, Z, *times(0.5, 0.1), {"a": a})
    torch.testing.assert_close(df, -a * 0.3)
