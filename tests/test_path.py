"""The interpolant: every conversion and its inverse, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowmap import path
from flowmap.times import euler_grid

inside = st.floats(0.01, 0.99)


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(3, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    return x, noise


def time(value: float) -> Tensor:
    return torch.full((3,), value, dtype=torch.float64)


@given(t=inside)
def test_data_noise_and_velocity_follow_from_each_other(t: float) -> None:
    x, noise = draw()
    z, v = path.interpolate(x, noise, time(t))
    torch.testing.assert_close(path.data_from_velocity(z, v, time(t)), x)
    torch.testing.assert_close(path.noise_from_velocity(z, v, time(t)), noise)
    torch.testing.assert_close(path.velocity_from_data(z, x, time(t)), v)


@given(t=inside)
def test_the_score_is_that_of_the_noise_and_of_the_data(t: float) -> None:
    x, noise = draw()
    z, v = path.interpolate(x, noise, time(t))
    score = path.score_from_velocity(z, v, time(t))
    torch.testing.assert_close(score, -noise / t)
    torch.testing.assert_close(score, -(z - (1 - t) * x) / t**2)


@given(t=inside)
def test_scores_differ_as_data_predictions_do(t: float) -> None:
    """s_a - s_b = (1 - t) / t² (x̂_a - x̂_b): what lets DMD work in data space."""
    z, a = draw()
    b = a.flip(0) + 1
    scores = path.score_from_velocity(z, a, time(t)) - path.score_from_velocity(z, b, time(t))
    data = path.data_from_velocity(z, a, time(t)) - path.data_from_velocity(z, b, time(t))
    torch.testing.assert_close(scores, (1 - t) / t**2 * data)


@given(t=inside)
def test_the_velocity_is_the_derivative_of_the_state(t: float) -> None:
    x, noise = draw()
    above, below = (path.interpolate(x, noise, time(s))[0] for s in (t + 0.01, t - 0.01))
    torch.testing.assert_close((above - below) / 0.02, path.interpolate(x, noise, time(t))[1])


@given(r=inside, t=inside)
def test_renoising_keeps_the_marginal(r: float, t: float) -> None:
    """z_r of data x is N((1 - r) x, r²): a z_r + b ε must be N((1 - t) x, t²)."""
    r, t = min(r, t), max(r, t)
    zero, one = torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    a = path.renoise(one, zero, time(r), time(t))
    b = path.renoise(zero, one, time(r), time(t))
    torch.testing.assert_close(a * (1 - r), (1 - t) * one)
    torch.testing.assert_close(a**2 * r**2 + b**2, t**2 * one)


def test_renoising_from_data_is_the_interpolant_and_to_where_it_is_changes_nothing() -> None:
    x, noise = draw()
    torch.testing.assert_close(path.renoise(x, noise, time(0), time(0.7)), path.interpolate(x, noise, time(0.7))[0])
    torch.testing.assert_close(path.renoise(x, noise, time(0.4), time(0.4)), x)
    assert torch.equal(path.renoise(x, noise, time(1), time(1)), x)
    torch.testing.assert_close(path.renoise(x, noise, time(0.4), time(1)), noise * (1 - 0.0) ** 0.5)


@given(t=st.floats(0, 1), s=st.floats(0.2, 20))
def test_unshift_inverts_shift(t: float, s: float) -> None:
    value = torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(path.unshift(path.shift(value, s), s), value, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    "steps, grid",
    [
        (1, [1000, 0]),
        (2, [1000, 833.3, 0]),
        (4, [1000, 937.5, 833.3, 625, 0]),
        (8, [1000, 972.2, 937.5, 892.9, 833.3, 750, 625, 416.7, 0]),
    ],
)
def test_the_shifted_grid(steps: int, grid: list[float]) -> None:
    made = euler_grid(steps, 5.0)
    assert made.dtype == torch.float32
    assert made[0] == 1 and made[-1] == 0
    assert [round(1000 * float(t), 1) for t in made] == grid


def test_a_grid_has_at_least_one_step() -> None:
    with pytest.raises(ValueError, match="steps = 0: must be at least 1"):
        euler_grid(0)


def test_half_precision_latents_do_not_lower_the_precision_of_times() -> None:
    x, noise = (a.bfloat16() for a in draw())
    t = torch.full((3,), 0.9985)
    z, _ = path.interpolate(x, noise, t)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, (1 - t[:, None, None]) * x.float() + t[:, None, None] * noise.float())


def test_times_may_differ_between_frames() -> None:
    x, noise = draw()
    t = torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64)
    z, _ = path.interpolate(x, noise, t)
    assert torch.equal(z[:, 0], x[:, 0]) and torch.equal(z[:, 1], noise[:, 1])
