"""A rectified-flow network in TrigFlow is the same network: its velocity, its data, its derivative."""

from __future__ import annotations

import pytest
import torch
from flowmap_consistency import trigflow
from torch import Tensor

from flowmap import Rng
from flowmap.derivative import ForwardMode
from flowmap.path import data_from_velocity, interpolate
from flowmap.testing import GaussianFlowMap

N = 64
T = torch.linspace(0, 1, N, dtype=torch.float64)
CLOSE = {"atol": 1e-12, "rtol": 1e-12}


def normal(key: int) -> Tensor:
    return Rng.seeded(key).noise_like(torch.empty(N, 3, dtype=torch.float64))


def test_times_and_angles_are_one_another() -> None:
    c, s = trigflow.cos_sin(T, T)
    θ = trigflow.angle(T)
    torch.testing.assert_close(trigflow.time(θ), T, **CLOSE)
    torch.testing.assert_close(c, θ.cos(), **CLOSE)
    torch.testing.assert_close(s, θ.sin(), **CLOSE)
    assert float(θ[0]) == 0 and float(θ[-1]) == pytest.approx(torch.pi / 2)


def test_the_times_of_log_normal_sigmas_are_logit_normal() -> None:
    """σ = tan θ = t / (1 - t), so log σ ~ N(m, s²) is t = sigmoid(N(m, s²))."""
    t = torch.sigmoid(normal(0))
    torch.testing.assert_close(trigflow.angle(t).tan().log(), (t / (1 - t)).log(), atol=1e-9, rtol=1e-9)


def test_the_state_is_cos_x_plus_sin_noise_and_its_velocity_cos_noise_minus_sin_x() -> None:
    x, noise = normal(1), normal(2)
    z, v = interpolate(x, noise, T)
    c, s = trigflow.cos_sin(T, z)
    torch.testing.assert_close((c + s) * z, c * x + s * noise, **CLOSE)
    torch.testing.assert_close(trigflow.velocity((c + s) * z, v, c, s), c * noise - s * x, **CLOSE)


def test_the_consistency_function_is_the_prediction_of_the_data() -> None:
    z, u = normal(3), normal(4)
    c, s = trigflow.cos_sin(T, z)
    x = (c + s) * z
    F = trigflow.velocity(x, u, c, s)
    torch.testing.assert_close(c * x - s * F, data_from_velocity(z, u, T), **CLOSE)


def test_the_velocity_is_the_derivative_of_the_state_along_a_trajectory() -> None:
    """By brute force: the exact flow map, rescaled, differentiated in θ."""
    u, noise, t = GaussianFlowMap().double(), normal(5), T[1:-1]
    noise, one = noise[1:-1], torch.ones_like(t)

    def state(θ: Tensor) -> Tensor:
        z = u.jump(noise, one, trigflow.time(θ), {})
        c, s = trigflow.cos_sin(trigflow.time(θ), z)
        return (c + s) * z

    θ = trigflow.angle(t)
    x, dx = torch.func.jvp(state, (θ,), (one,))
    c, s = trigflow.cos_sin(t, x)
    F = trigflow.velocity(x, u.velocity(x / (c + s), t, {}), c, s)
    torch.testing.assert_close(F, dx, atol=1e-9, rtol=1e-9)


def test_the_derivative_is_that_of_the_wrapped_network() -> None:
    """Against one Jacobian-vector product in (x_θ, θ), with tangents (c s dx/dθ, c s) as sCM and rCM take it."""
    u, x, dx = GaussianFlowMap(scale=1.2, bias=0.1).double(), normal(6), normal(7)
    zero = torch.zeros_like(T)

    def wrapped(x: Tensor, θ: Tensor) -> Tensor:
        t = trigflow.time(θ)
        c, s = trigflow.cos_sin(t, x)
        return trigflow.velocity(x, u(x / (c + s), t, zero, {}), c, s)

    c, s = trigflow.cos_sin(T, x)
    _, expected = torch.func.jvp(wrapped, (x, trigflow.angle(T)), (c * s * dx, (c * s)[:, 0]))
    z, v = x / (c + s), (c + s) * dx - (c - s) * x  # of which `velocity` makes dx
    torch.testing.assert_close(trigflow.velocity(x, v, c, s), dx, **CLOSE)
    du = ForwardMode()(u, z, T, zero, v, {})
    found = c * s * trigflow.derivative(x, dx, u(z, T, zero, {}), du, c, s)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
