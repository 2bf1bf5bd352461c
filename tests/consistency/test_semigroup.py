"""The semigroup identity comes to rest at the true flow map, wherever a jump is cut, and nowhere near."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowmap_consistency.semigroup import Anywhere, Middle, SemigroupMatching, Split
from torch import Tensor

from flowmap import Rng
from flowmap._types import Shared, Time
from flowmap.guidance import Exact
from flowmap.path import unshift
from flowmap.reweights import Adaptive
from flowmap.testing import CountingFlowMap, GaussianFlowMap, GuidedGaussianFlowMap
from flowmap.times import Dyadic, TimeSampler, Triangle, euler_grid
from tests.consistency.oracle import Bent, pull
from tests.consistency.test_lagrangian import guided
from tests.objectives.test_flow_map_matching import MEAN, STD, Spy, Wide, data, told

TIMES = [Triangle(0.0, 0.0), Triangle(0.0, 1.0), Triangle(0.0, 0.0, 5.0), Dyadic(7), Dyadic(5, 5.0)]
SPLITS = [Middle(), Middle(5.0), Anywhere()]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("reweight", [(), (Adaptive(),)])
def test_at_the_true_flow_map_there_is_no_gradient(times: TimeSampler, split: Split, reweight: tuple[Any, ...]) -> None:
    objective = SemigroupMatching(Wide(times), split, reweight)
    assert pull(GaussianFlowMap(MEAN, STD), objective).abs().max() < 1e-9


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("bend", [0.1, -0.1])
def test_a_bend_off_the_diagonal_is_pulled_straight(times: TimeSampler, split: Split, bend: float) -> None:
    assert float(pull(Bent(bend), SemigroupMatching(Wide(times), split))) / bend > 0.02


def pairs(times: TimeSampler, n: int = 64) -> tuple[Tensor, Tensor, Tensor, Rng]:
    """(z, t, r) that the objective draws of `data(n)`, and its Rng as it is then."""
    rng, x = Rng.seeded(0), data(n).x
    rng.uniform(n, x)  # whose prompts are dropped
    t, r = times(n, rng, x)
    return (1 - t)[:, None] * x + t[:, None] * rng.noise_like(x), t, r, rng


def test_the_target_is_the_mean_velocity_of_the_two_jumps() -> None:
    """(z_t - z_r) / (t - r), where z_r is what the two jumps arrive at."""
    student, times = Bent(0.3), Wide(Triangle(0.0, 0.0))
    loss = SemigroupMatching(times, Anywhere())({"student": student}, data(64), Rng.seeded(0), Shared())
    z, t, r, rng = pairs(times)
    s, _ = Anywhere()(t, r, rng)
    y = (z - student.jump(student.jump(z, t, s, {}), s, r, {})) / (t - r)[:, None]
    torch.testing.assert_close(loss.value, (student(z, t, r, {}) - y).square().mean())
    torch.testing.assert_close(loss.logs["loss/free"].value, loss.value.detach().float())


def test_calls_and_their_conditions() -> None:
    """1 G and 2 F, all with the history."""
    u, batch = Spy(), told()
    counted = CountingFlowMap(u)
    SemigroupMatching(split=Anywhere())({"student": counted}, batch, Rng.seeded(0), Shared())
    assert (counted.graph, counted.plain) == (8, 16)
    whole, first, second = u.calls
    assert [call["grad"] for call in u.calls] == [True, False, False]
    assert torch.equal(first["z"], whole["z"]) and torch.equal(first["t"], whole["t"])
    assert torch.equal(second["t"], first["r"]) and torch.equal(second["r"], whole["r"])
    assert ((whole["r"] <= first["r"]) & (first["r"] <= whole["t"])).all()
    for call in u.calls:
        assert torch.equal(call["cond"]["history"], batch.x)


def test_prompts_are_dropped_in_all_calls_alike() -> None:
    u = Spy()
    SemigroupMatching(guidance=Exact(3.0, 0.5))({"student": u}, told(64), Rng.seeded(0), Shared())
    texts = torch.stack([call["cond"]["text"] for call in u.calls])
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])
    assert 0 < int((texts[0, :, 0] == 0).sum()) < 64


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_it_rests_at_the_flow_map_of_the_guided_field(drop: float) -> None:
    objective = SemigroupMatching(Wide(Triangle(0.0, 0.0)), Anywhere(), guidance=Exact(3.0, drop))
    assert pull(GuidedGaussianFlowMap(w=3.0), objective, guided(1.0)).abs().max() < 1e-9


def test_short_halves_follow_the_velocity() -> None:
    """u(z, t, t) in place of u(z, t, s), and at s: only of the jumps whose halves are short."""
    u, finest = Spy(), 2.0**-5
    SemigroupMatching(Dyadic(5), Middle(finest=finest))({"student": u}, told(40), Rng.seeded(0), Shared())
    whole, first, second = u.calls
    gap = whole["t"] - whole["r"]
    short = gap <= 2 * finest
    assert int(short.sum()) == 8
    middle = (whole["t"] + whole["r"]) / 2
    assert torch.equal(first["r"], torch.where(short, whole["t"], middle))
    assert torch.equal(second["t"], middle)
    assert torch.equal(second["r"], torch.where(short, middle, whole["r"]))


@pytest.mark.parametrize("s", [1.0, 5.0])
def test_the_middle_of_a_dyadic_step_is_on_the_next_grid(s: float) -> None:
    t, r = Dyadic(4, s)(64, Rng.seeded(0), torch.zeros(1))
    middle, short = Middle(s, finest=2.0**-4)(t, r, Rng.seeded(0))
    grid = euler_grid(16, s)
    assert float((middle[:, None] - grid).abs().min(1).values.max()) < 1e-6
    gap = unshift(t, s) - unshift(r, s)
    assert torch.equal(short, gap < 1.5 / 8) and int(short.sum()) == 16
    assert ((r < middle) & (middle < t)).all()


def test_anywhere_is_uniform_between() -> None:
    n = 20_000
    t, r = torch.full((n,), 0.9), torch.full((n,), 0.3)
    s, short = Anywhere()(t, r, Rng.seeded(0))
    u = (s - r) / (t - r)
    assert not short.any() and ((u >= 0) & (u <= 1)).all()
    for q in (0.1, 0.5, 0.9):
        assert abs(float((u < q).float().mean()) - q) < 4 * (q * (1 - q) / n) ** 0.5


def test_the_state_between_is_clipped() -> None:
    u, batch = Spy(), told()
    SemigroupMatching(clip=0.25)({"student": u}, batch, Rng.seeded(0), Shared())
    free = Spy()
    SemigroupMatching()({"student": free}, batch, Rng.seeded(0), Shared())
    assert free.calls[2]["z"].abs().max() > 0.25
    assert torch.equal(u.calls[2]["z"], free.calls[2]["z"].clamp(-0.25, 0.25))


def test_a_pair_on_the_diagonal_is_no_division_by_zero() -> None:
    def diagonal(n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        return torch.full((n,), 0.5), torch.full((n,), 0.5)

    loss = SemigroupMatching(diagonal)({"student": GaussianFlowMap(MEAN, STD)}, data(8), Rng.seeded(0), Shared())
    assert float(loss.value.detach()) < 1e-12


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Middle(shift=0.0), r".shift = .*: must be .*> 0"),
        (lambda: Middle(finest=1.0), r".finest = .*: must be .*< 1"),
        (lambda: SemigroupMatching(clip=0.0), r".clip = .*: must be .*> 0"),
    ],
)
def test_a_wrong_value_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
