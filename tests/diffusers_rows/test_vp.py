"""The change of variables against the exact Gaussian oracle: no network, and of diffusers its schedules alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from flowmap_diffusers import vp
from torch import Tensor

from flowmap import Rng
from flowmap.path import expand
from flowmap.testing import GaussianFlowMap
from tests.test_planted_defects import planted

M, S = 0.5, 0.5
SCHEDULES = {
    "2b": {"snr_shift_scale": 3.0, "rescale_betas_zero_snr": True},
    "5b": {"snr_shift_scale": 1.0, "rescale_betas_zero_snr": True},
}
"""Of CogVideoX, as published."""
EXACT = {"rtol": 0.0, "atol": 1e-10}


def alphas(name: str) -> Tensor:
    return CogVideoXDDIMScheduler(**SCHEDULES[name]).alphas_cumprod.double()


def noise(*shape: int) -> Tensor:
    return Rng.seeded(3).noise_like(torch.zeros(*shape, dtype=torch.float64))


def predictions(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(v, ε̂, x̂) at x_τ of data N(M, S²), a = α²."""
    alpha, sigma = a.sqrt(), (1 - a).sqrt()
    var = a * S**2 + sigma**2
    data = M + alpha * S**2 / var * (x - alpha * M)
    eps = sigma / var * (x - alpha * M)
    return alpha * eps - sigma * data, eps, data


def times(a: Tensor) -> Tensor:
    return (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())


def schedule(name: str, kind: str, last: int | None = None) -> vp.Schedule:
    return vp.Schedule(vp.table(alphas(name)[:last]), kind)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", vp.PREDICTIONS)
def test_all_three_predictions_are_the_linear_path_s_velocity(name: str, kind: str) -> None:
    """Up to the last step at which there is data."""
    own, a = schedule(name, kind, 999), alphas(name)[[0, 10, 300, 600, 900, 998]]
    t, z = times(a), noise(6, 5)
    made = dict(zip(vp.PREDICTIONS, predictions(vp.scale(t)[:, None] * z, a[:, None]), strict=True))[kind]
    wanted = GaussianFlowMap(M, S)(z, t, t, {})
    torch.testing.assert_close(own.velocity(z, made, t), wanted, **EXACT)
    torch.testing.assert_close(own.said(z, wanted, t), made, **EXACT)


@pytest.mark.parametrize("kind", vp.PREDICTIONS)
def test_beyond_the_schedule_all_three_are_one_network_that_says_v(kind: str) -> None:
    """Its step is held there, and so is what is made of its prediction: finite, and continuous at the ends."""
    own = schedule("5b", kind, 999)
    low, high = own.ends
    eps = 1e-9
    t = torch.tensor([0.0, low - eps, low, high, high + eps, 1.0], dtype=torch.float64)
    z, one = noise(6, 5), noise(1, 5).expand(6, 5)
    held = t.clamp(low, high)[:, None]
    x, (alpha, sigma) = vp.scale(t)[:, None] * z, ((1 - held) * vp.scale(held), held * vp.scale(held))
    v = {"v_prediction": one, "epsilon": (one - sigma * x) / alpha, "sample": (alpha * x - one) / sigma}[kind]
    found = own.velocity(z, one, t)
    assert found.isfinite().all()
    torch.testing.assert_close(found, vp.velocity(z, v, t[:, None]), **EXACT)
    near = own.velocity(noise(1, 5).expand(6, 5), one, t)
    torch.testing.assert_close(near[[1, 4]], near[[2, 3]], rtol=0, atol=1e-4)


def test_a_prediction_that_a_schedule_leaves_undefined_is_refused() -> None:
    with pytest.raises(ValueError, match="a schedule whose last step is noise alone has no velocity there of a netw"):
        schedule("2b", "epsilon")
    with pytest.raises(ValueError, match="a schedule whose first step is data alone has no velocity there of a netw"):
        vp.Schedule(torch.tensor([0.0, 0.5, 1.0]), "sample")
    with pytest.raises(ValueError, match=r"prediction = 'noise': must be 'v_prediction', 'epsilon' or 'sample'"):
        schedule("2b", "noise")


@pytest.mark.parametrize("name", SCHEDULES)
def test_v_is_the_velocity_at_both_ends_of_the_schedule_too(name: str) -> None:
    a = alphas(name)[[0, 999]]
    t, z = times(a), noise(2, 5)
    s = expand(t, z)
    found = vp.velocity(z, predictions(vp.scale(s) * z, a[:, None])[0], s)
    torch.testing.assert_close(found, GaussianFlowMap(M, S)(z, t, t, {}), **EXACT)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_flow_map_of_one_is_the_flow_map_of_the_other(name: str) -> None:
    """Ψ_{τ'←τ}(x) = α' m + sd'/sd (x - α m), in the units of z, is Φ_{r←t}."""
    a = alphas(name)
    now, then = a[[999, 900, 600, 300]], a[[500, 100, 599, 0]]
    t, r, z = times(now), times(then), noise(4, 5)
    x = vp.scale(t)[:, None] * z
    sd = [(b * S**2 + 1 - b).sqrt()[:, None] for b in (now, then)]
    moved = then.sqrt()[:, None] * M + sd[1] / sd[0] * (x - now.sqrt()[:, None] * M)
    torch.testing.assert_close(moved / vp.scale(r)[:, None], GaussianFlowMap(M, S).jump(z, t, r, {}), **EXACT)


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_and_times_are_inverse(name: str) -> None:
    table = vp.table(alphas(name))
    assert (table.diff() > 0).all() and table[-1] == 1.0
    steps = torch.arange(0, 1000, 7).double()
    torch.testing.assert_close(vp.step_of(table[steps.long()], table), steps, rtol=0, atol=1e-8)
    half = (table[400] + table[401]) / 2
    torch.testing.assert_close(vp.step_of(half[None], table), torch.tensor([400.5]).double(), rtol=0, atol=1e-8)
    beyond = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert vp.step_of(beyond, table).tolist() == [0.0, 999.0]


def test_the_step_follows_t_smoothly_enough_for_a_derivative() -> None:
    table = vp.table(alphas("5b"))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True)
    vp.step_of(t, table).sum().backward()
    h = 1e-6
    slope = (vp.step_of(t.detach() + h, table) - vp.step_of(t.detach() - h, table)) / (2 * h)
    torch.testing.assert_close(t.grad, slope, rtol=1e-4, atol=0)


def test_a_step_of_ddim_is_a_jump_on_the_linear_path() -> None:
    said = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}
    ddim = CogVideoXDDIMScheduler(**SCHEDULES["5b"], **said)
    ddim.set_timesteps(4)
    table = vp.table(ddim.alphas_cumprod)
    x, v = noise(2, 5).split(1)
    for now, then in zip(ddim.timesteps, [*ddim.timesteps[1:], None], strict=True):
        t = table[now][None]
        r = table[then][None] if then is not None else torch.zeros(1)
        z = x / vp.scale(t)
        moved = z - (t - r) * vp.velocity(z, v, t)
        torch.testing.assert_close(ddim.step(v, now, x).prev_sample, vp.scale(r) * moved, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "old, new",
    [
        ("return (2 * t - 1) * n**2 * z + n * v", "return v"),
        ("return (2 * t - 1) * n**2 * z + n * v", "return (1 - 2 * t) * n**2 * z + n * v"),
        ("return (2 * t - 1) * n**2 * z + n * v", "return (2 * t - 1) * n * z + n * v"),
    ],
)
def test_a_wrong_change_of_variables_is_seen(old: str, new: str) -> None:
    with planted("flowmap_diffusers.vp", old, new), pytest.raises(AssertionError):
        test_v_is_the_velocity_at_both_ends_of_the_schedule_too("5b")


@pytest.mark.parametrize(
    "kind, old, new",
    [
        ("epsilon", "(made - sigma * x) / alpha", "(made - alpha * x) / sigma"),
        ("sample", "(alpha * x - made) / sigma", "(made - alpha * x) / sigma"),
        ("epsilon", "return (1 - t) * n, t * n", "return 1 - t, t"),
    ],
)
def test_a_wrong_prediction_is_seen(kind: str, old: str, new: str) -> None:
    with planted("flowmap_diffusers.vp", old, new), pytest.raises(AssertionError):
        test_all_three_predictions_are_the_linear_path_s_velocity("5b", kind)
