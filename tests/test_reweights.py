"""Reweights: the constants of the reference, and what makes Balanced worth its name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowmap import Rng
from flowmap._types import Shared
from flowmap.path import shift
from flowmap.reweights import Adaptive, Balanced, Beta, Gaussian, Normalised, Ramp, Reweight, reweighted
from flowmap.times import Triangle

t_of_interest = torch.tensor([0.1, 0.5, 2 / 3, 0.9], dtype=torch.float64)


def weight(reweight: Reweight, t: Tensor) -> Tensor:
    return reweighted(torch.ones_like(t), t, t, (reweight,), Shared())


def test_beta_is_3_657_t_sqrt_one_minus_t_at_shift_5() -> None:
    ratio = weight(Beta(shift=5.0), t_of_interest) / (t_of_interest * (1 - t_of_interest).sqrt())
    assert [round(float(c), 3) for c in ratio] == [3.657] * 4
    assert round(float(weight(Beta(shift=5.0), t_of_interest).max()), 2) == 1.41


def test_gaussian_has_the_constant_5_277_at_shift_5() -> None:
    shape = torch.exp(-2 * (t_of_interest - 0.5) ** 2) - torch.exp(torch.tensor(-0.5, dtype=torch.float64))
    assert [round(float(c), 3) for c in weight(Gaussian(shift=5.0), t_of_interest) / shape] == [5.277] * 4


@pytest.mark.parametrize("kind", [Beta, Gaussian])
@pytest.mark.parametrize("s", [1.0, 3.0, 5.0])
def test_weights_sum_to_1000_over_the_shifted_grid(kind: type[Beta] | type[Gaussian], s: float) -> None:
    grid = shift(torch.arange(1001, dtype=torch.float64) / 1000, s)
    w = weight(kind(shift=s), grid)
    assert abs(float(w[1:-1].sum() + w[[0, -1]].mean()) - 1000) < 1e-6


def test_the_mean_weight_under_the_sampler_is_0_895() -> None:
    t, _ = Triangle(0.5, 0.25, 5.0)(200_000, Rng.seeded(0), torch.zeros(1))
    w = weight(Beta(shift=5.0), t)
    assert abs(float(w.mean()) - 0.895) < 0.0005 + 4 * float(w.std()) / 200_000**0.5


def test_the_closed_form_is_off_the_nearest_of_1001_times() -> None:
    """The reference looks its weight up; docs/methods.md has the numbers."""
    t, _ = Triangle(0.5, 0.25, 5.0)(200_000, Rng.seeded(0), torch.zeros(1))
    t, grid = t.double(), shift(torch.arange(1001, dtype=torch.float64) / 1000, 5.0)
    above = torch.searchsorted(grid, t).clamp(1, 1000)
    nearest = torch.where(t - grid[above - 1] < grid[above] - t, above - 1, above)
    looked_up, own = weight(Beta(), grid)[nearest], weight(Beta(), t)
    off = ((own - looked_up).abs() / looked_up)[looked_up > 0]
    assert abs(float(off.median()) - 4.4e-4) < 0.1e-4
    assert 0.005 < float((off > 0.02).double().mean()) < 0.02
    assert abs(float(own.mean() / looked_up.mean()) - 1) < 1e-4


def test_pure_noise_weighs_nothing() -> None:
    assert float(weight(Beta(), torch.ones(1))) == 0.0


T, R = torch.tensor([0.5, 0.6, 0.7, 0.8]), torch.tensor([0.5, 0.6, 0.1, 0.0])


def test_balanced_gives_every_sample_what_the_diagonal_has_on_average() -> None:
    out = reweighted(torch.tensor([1.0, 3.0, 10.0, 0.1]), T, R, (Balanced(),), Shared())
    torch.testing.assert_close(out, torch.tensor([1.0, 3.0, 2.0, 2.0]), rtol=1e-3, atol=0)


@given(scale=st.floats(0.01, 1000.0))
def test_the_balance_of_gradients_does_not_depend_on_the_scale_of_the_error_off_the_diagonal(scale: float) -> None:
    """The gradient off the diagonal is μ ∇ log loss: that of a residual times anything is the same."""

    def gradients(scale: float) -> Tensor:
        p = torch.ones(4, requires_grad=True)
        loss = torch.tensor([1.0, 3.0, scale * 10.0, scale * 0.5]) * p**2
        return torch.autograd.grad(reweighted(loss, T, R, (Balanced(1e-9),), Shared()).sum(), p)[0]

    torch.testing.assert_close(gradients(scale), gradients(1.0), rtol=1e-4, atol=0)


def test_the_weight_of_time_cancels_off_the_diagonal() -> None:
    raw, both = torch.tensor([1.0, 3.0, 10.0, 0.5]), Balanced(1e-9)
    weighted = reweighted(raw, T, R, (Beta(), both), Shared())
    mu = reweighted(raw, T, R, (Beta(),), Shared())[:2].mean()
    torch.testing.assert_close(weighted[2:], mu.expand(2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [torch.zeros(2), torch.tensor([4.0, 1.0])])
def test_before_there_has_been_a_diagonal_a_loss_is_what_it_is(loss: Tensor) -> None:
    torch.testing.assert_close(reweighted(loss, T[2:], R[2:], (Balanced(),), Shared()), loss, rtol=1e-6, atol=0)


def test_a_batch_without_a_diagonal_uses_the_last_mean_there_was() -> None:
    shared = Shared()
    reweighted(torch.tensor([6.0, 2.0]), T[:2], R[:2], (Balanced(),), shared)
    shared.next()
    torch.testing.assert_close(
        reweighted(torch.tensor([9.0, 0.5]), T[2:], R[2:], (Balanced(),), shared),
        torch.full((2,), 4.0),
        rtol=1e-3,
        atol=0,
    )


def test_the_mean_is_over_all_micro_batches_so_far() -> None:
    shared, t, r = Shared(), torch.tensor([0.5, 0.7]), torch.tensor([0.5, 0.1])
    found = [reweighted(torch.tensor([on, 10.0]), t, r, (Balanced(),), shared)[1] for on in (1.0, 3.0)]
    torch.testing.assert_close(torch.stack(found), torch.tensor([1.0, 2.0]), rtol=1e-3, atol=0)


def test_one_that_is_idle_adds_nothing() -> None:
    shared, t, r = Shared(), torch.tensor([0.5, 0.7]), torch.tensor([0.5, 0.1])
    reweighted(torch.tensor([1.0, 10.0]), t, r, (Balanced(),), shared)
    with shared.idle():
        assert float(reweighted(torch.tensor([3.0, 10.0]), t, r, (Balanced(),), shared)[1]) == pytest.approx(
            1.0, rel=1e-3
        )
    shared.next()
    assert shared.state() == {"0/diagonal": [1.0, 1.0]}


def test_two_in_a_row_have_a_mean_each() -> None:
    """The second sees the diagonal that the first left and something else has changed."""

    def doubled(loss: Tensor, noise: Tensor, t: Tensor, r: Tensor, shared: Shared) -> Tensor:
        return torch.full_like(loss, 2.0)

    shared = Shared()
    found = reweighted(torch.tensor([1.0, 3.0, 10.0, 0.1]), T, R, (Balanced(), doubled, Balanced()), shared)
    torch.testing.assert_close(found, torch.tensor([2.0, 6.0, 4.0, 4.0]), rtol=1e-3, atol=0)
    shared.next()
    assert shared.state() == {"0/diagonal": [4.0, 2.0], "2/diagonal": [8.0, 2.0]}


def test_no_gradient_flows_through_the_weights() -> None:
    loss = torch.tensor([1.0, 3.0, 10.0, 0.1], requires_grad=True)
    (g,) = torch.autograd.grad(reweighted(loss, T, R, (Balanced(),), Shared()).sum(), loss)
    torch.testing.assert_close(g, torch.tensor([1.0, 1.0, 0.2, 20.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_adaptive_divides_by_the_loss_to_the_power_p(p: float) -> None:
    loss = torch.tensor([4.0, 0.25], requires_grad=True)
    out = reweighted(loss, T[:2], R[:2], (Adaptive(p, 1e-6),), Shared())
    torch.testing.assert_close(out, loss.detach() ** (1 - p), rtol=1e-4, atol=0)
    (g,) = torch.autograd.grad(out.sum(), loss)
    torch.testing.assert_close(g, loss.detach() ** -p, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "make", [lambda: Balanced(0.0), lambda: Adaptive(c=0.0), lambda: Normalised(0.0), lambda: Beta(shift=-1.0)]
)
def test_a_wrong_value_is_an_error(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"must be > 0"):
        make()


def test_beta_has_the_powers_it_is_given() -> None:
    ratio = weight(Beta(2.0, 1.5), t_of_interest) / (t_of_interest**2 * (1 - t_of_interest) ** 1.5)
    torch.testing.assert_close(ratio, ratio[:1].expand(4))


def test_a_loss_of_nothing_weighs_nothing_and_the_constant_is_added() -> None:
    loss = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(
        reweighted(loss, T[:2], R[:2], (Adaptive(1.0, 1.0),), Shared()), torch.tensor([0.5, 0.0])
    )
    shared = Shared()
    reweighted(torch.tensor([6.0, 2.0]), T[:2], R[:2], (Balanced(),), shared)
    shared.next()
    torch.testing.assert_close(reweighted(loss, T[2:], R[2:], (Balanced(1.0),), shared), torch.tensor([2.0, 0.0]))


def test_normalised_makes_every_gradient_of_the_same_size() -> None:
    """The gradient with respect to u of loss = mean(g²) becomes 2 g / (rms(g) + c), over the number of elements."""
    g = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    loss = g.square().mean(1)
    out = reweighted(loss, T[:3], R[:3], (Normalised(0.1),), Shared())
    (found,) = torch.autograd.grad(out.sum(), g)
    rms = g.detach().square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(found, 2 * g.detach() / (rms + 0.1) / 2)
    torch.testing.assert_close(out, (loss / (loss.sqrt() + 0.1)).detach())


def test_a_ramp_rises_to_its_top_and_stays_there() -> None:
    assert [Ramp(10, 0.99)(i) for i in (0, 5, 9, 10, 1000)] == [0.0, 0.5, 0.9, 0.99, 0.99]
    assert [Ramp()(i) for i in (0, 1000)] == [1.0, 1.0]
    with pytest.raises(ValueError, match=r".steps = .*: must be .*>= 0"):
        Ramp(-1)


def test_of_a_loss_that_is_not_finite_nothing_is_remembered() -> None:
    """The step is skipped, and the next one weighs as if it had not been."""
    shared, t = Shared(), torch.tensor([0.5, 0.5])
    for diagonal in (2.0, torch.nan):
        reweighted(torch.tensor([diagonal, 8.0]), t, torch.tensor([0.5, 0.1]), (Balanced(),), shared)
        shared.next()
    assert shared.state() == {"0/diagonal": [2.0, 1.0]}
    off = reweighted(torch.tensor([8.0, 8.0]), t, torch.tensor([0.2, 0.1]), (Balanced(),), shared)
    torch.testing.assert_close(off, torch.tensor([2.0, 2.0]), rtol=1e-4, atol=0)
