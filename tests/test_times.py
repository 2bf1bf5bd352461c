"""Samplers of (t, r): quantiles, shares, and what a batch that is split sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowmap import Rng
from flowmap.path import shift
from flowmap.times import (
    Diagonal,
    Dyadic,
    Gap,
    LogitNormal,
    TimeSampler,
    Triangle,
    Truncated,
    Uniform,
    euler_grid,
    roles,
)

LIKE, N = torch.zeros(1), 100_000
QUANTILES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])


def share_below(t: Tensor, points: Tensor) -> Tensor:
    return (t[:, None] < points).float().mean(0)


def within(share: Tensor, expected: Tensor) -> bool:
    """Four standard deviations of a share of N samples."""
    return bool(((share - expected).abs() <= 4 * (expected * (1 - expected) / N).sqrt()).all())


@pytest.mark.parametrize(
    "sampler, exact, table",
    [
        (Triangle(0.5, 0.25, 5.0), shift(QUANTILES.sqrt(), 5.0), [0.59, 0.83, 0.92, 0.97, 0.995]),
        (
            Diagonal(LogitNormal(), 5.0),
            shift(torch.distributions.Normal(0.0, 1.0).icdf(QUANTILES).sigmoid(), 5.0),
            [0.49, 0.72, 0.83, 0.91, 0.96],
        ),
    ],
    ids=["max of two uniforms, shift 5", "logit-normal, shift 5"],
)
def test_quantiles_of_t(sampler: TimeSampler, exact: Tensor, table: list[float]) -> None:
    t, _ = sampler(N, Rng.seeded(0), LIKE)
    assert within(share_below(t, exact), QUANTILES)
    assert [round(float(q), 3 if q > 0.99 else 2) for q in exact] == table


def test_the_logit_normal_mean_and_std_are_of_the_logit() -> None:
    logit = LogitNormal(-0.4, 0.5)(N, Rng.seeded(0), LIKE).logit()
    assert abs(float(logit.mean()) + 0.4) < 4 * 0.5 / N**0.5
    assert abs(float(logit.std()) - 0.5) < 4 * 0.5 / (2 * N) ** 0.5


def counts(t: Tensor, r: Tensor) -> dict[str, int]:
    return {role: int(mask.sum()) for role, mask in roles(t, r).items()}


@given(seed=st.integers(0, 50), quarters=st.integers(1, 8))
def test_roles_are_exact_where_the_global_batch_divides(seed: int, quarters: int) -> None:
    n = 4 * quarters
    t, r = Triangle(0.5, 0.25, 5.0)(n, Rng.seeded(seed), LIKE)
    assert counts(t, r) == {"diagonal": n // 2, "edge": n // 4, "free": n // 4}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_and_micro_batches_see_the_pairs_of_the_whole(ranks: int) -> None:
    sampler, n = Triangle(0.5, 0.25, 5.0), 8
    whole = torch.stack(sampler(n, Rng((0, 7)), LIKE), 1)
    size = n // ranks
    parts = [tuple(range(k * size, (k + 1) * size)) for k in range(ranks)]
    split = torch.cat([torch.stack(sampler(size, Rng((0, 7), p, n), LIKE), 1) for p in parts])
    assert torch.equal(split, whole)
    assert counts(*split.unbind(1)) == {"diagonal": 4, "edge": 2, "free": 2}


def test_a_global_batch_of_one_has_every_role_in_its_turn() -> None:
    n, seen = 2000, {"diagonal": 0, "edge": 0, "free": 0}
    for seed in range(n):
        for role, count in counts(*Triangle()(1, Rng.seeded(seed), LIKE)).items():
            seen[role] += count
    for role, share in {"diagonal": 0.5, "edge": 0.25, "free": 0.25}.items():
        assert abs(seen[role] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_which_sample_has_which_role_changes_from_draw_to_draw() -> None:
    first = {bool(t[0] == r[0]) for t, r in (Triangle()(8, Rng.seeded(seed), LIKE) for seed in range(20))}
    assert first == {True, False}


TRIANGLES = [Triangle(), Triangle(0.0, 0.0, 5.0), Triangle(0.0, 1.0), Triangle(0.75, 0.0, 1.0, LogitNormal(-0.4))]
GAPS = [Gap(), Gap(shift=5.0), Gap(end=LogitNormal(-0.4)), Dyadic(), Dyadic(12, 5.0)]


@pytest.mark.parametrize("sampler", [Diagonal(), *TRIANGLES, *GAPS])
def test_r_is_at_most_t_and_both_are_float32_times(sampler: TimeSampler) -> None:
    t, r = sampler(1000, Rng.seeded(0), torch.zeros(1, dtype=torch.bfloat16))
    assert t.dtype == r.dtype == torch.float32
    assert ((r >= 0) & (r <= t) & (t <= 1)).all()


def test_a_triangle_of_no_diagonal_and_no_edge_has_neither() -> None:
    assert counts(*Triangle(0.0, 0.0)(64, Rng.seeded(0), LIKE))["free"] == 64
    assert counts(*Triangle(0.0, 1.0)(64, Rng.seeded(0), LIKE))["edge"] == 64
    assert counts(*Triangle(1.0, 0.0)(64, Rng.seeded(0), LIKE))["diagonal"] == 64


def test_the_shift_comes_after_the_draw() -> None:
    t, r = Triangle(0.0, 0.0)(64, Rng.seeded(0), LIKE)
    t5, r5 = Triangle(0.0, 0.0, 5.0)(64, Rng.seeded(0), LIKE)
    torch.testing.assert_close(t5, shift(t, 5.0))
    torch.testing.assert_close(r5, shift(r, 5.0))


def test_a_diagonal_is_clamped_after_the_shift() -> None:
    t, r = Diagonal(shift=5.0, low=0.02, high=0.98)(N, Rng.seeded(0), LIKE)
    assert torch.equal(t, r)
    assert t.min() >= 0.02 and t.max() == torch.tensor(0.98)
    free, _ = Diagonal(shift=5.0)(N, Rng.seeded(0), LIKE)
    assert torch.equal(t, free.clamp(0.02, 0.98))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Triangle(0.8, 0.5), r"Triangle.diagonal \+ edge = 1.3: the shares must not sum to more than 1"),
        (lambda: Triangle(-0.1), r".diagonal = .*: must be .*>= 0"),
        (lambda: Triangle(shift=0.0), r".shift = .*: must be .*> 0"),
        (lambda: Diagonal(low=0.5, high=0.5), "Diagonal.low = 0.5: must be below high = 0.5"),
        (lambda: Diagonal(Uniform(), high=1.5), r".high = .*: must be .*<= 1"),
        (lambda: LogitNormal(std=0.0), r".std = .*: must be .*> 0"),
        (lambda: Gap(shift=0.0), r".shift = .*: must be .*> 0"),
        (lambda: Dyadic(0), r".levels = .*: must be .*>= 1"),
    ],
)
def test_a_wrong_value_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_quantiles_of_the_gap() -> None:
    """AYF: the gap is logit-normal, r is uniform in what is left."""
    t, r = Gap()(N, Rng.seeded(0), LIKE)
    exact = (torch.special.ndtri(QUANTILES) - 0.8).sigmoid()
    assert within(share_below(t - r, exact), QUANTILES)
    assert within(share_below(r / (1 - (t - r)), QUANTILES), QUANTILES)
    assert [round(float(q), 2) for q in exact] == [0.08, 0.19, 0.31, 0.47, 0.7]


def test_quantiles_of_an_end_that_is_logit_normal() -> None:
    """TVM: r is sigmoid(N(-0.4, 1)), given that it leaves room for the gap: its rank among those is uniform."""
    t, r = Gap(end=LogitNormal(-0.4, 1.0))(N, Rng.seeded(0), LIKE)
    normal = torch.distributions.Normal(-0.4, 1.0)
    gap = (t - r).double()
    rank = normal.cdf(r.double().logit()) / normal.cdf((1 - gap).logit())
    assert within(share_below(rank, QUANTILES), QUANTILES)
    assert within(share_below(t - r, (torch.special.ndtri(QUANTILES) - 0.8).sigmoid()), QUANTILES)


@pytest.mark.parametrize("density", [Uniform(), LogitNormal(-0.4), LogitNormal(2.0, 0.1)])
@pytest.mark.parametrize("high", [0.0, 1e-6, 0.3, 1.0])
def test_what_is_cut_off_stays_below(density: Truncated, high: float) -> None:
    drawn = density.between(torch.zeros(1000), torch.full((1000,), high), Rng.seeded(0))
    assert drawn.dtype == torch.float32
    assert ((drawn >= 0) & (drawn <= high)).all()


def test_steps_of_the_dyadic_grids() -> None:
    """Every level as often, exactly where the batch divides; every step of a grid as often, on average."""
    n = 7 * 1000
    t, r = Dyadic(7)(n, Rng.seeded(0), LIKE)
    steps = 1 / (t - r)
    assert {float(s): int((steps == s).sum()) for s in steps.unique()} == {2.0**k: 1000 for k in range(7)}
    index = r * steps
    assert torch.equal(index, index.round()) and (index < steps).all()
    for k in (1, 2, 3):
        number = torch.bincount(index[steps == 2.0**k].long(), minlength=2**k) / 1000
        p = torch.tensor(2.0**-k)
        assert ((number - p).abs() < 4 * (p * (1 - p) / 1000).sqrt()).all()


def test_dyadic_steps_are_those_of_the_shifted_sampling_grid() -> None:
    t, r = Dyadic(4, 5.0)(64, Rng.seeded(0), LIKE)
    grid = euler_grid(8, 5.0)
    for time in (t, r):
        assert float((time[:, None] - grid).abs().min(1).values.max()) < 1e-6


def test_the_last_level_is_the_last_though_a_share_be_rounded_to_one() -> None:
    class Ones(Rng):
        def stratified(self, n: int, like: Tensor) -> Tensor:
            return torch.ones(n)

    t, r = Dyadic(3)(16, Ones((0,)), LIKE)
    assert torch.equal(t - r, torch.full((16,), 0.25))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("sampler", [Gap(), Gap(end=LogitNormal()), Dyadic()])
def test_ranks_see_the_steps_of_the_whole(sampler: TimeSampler, ranks: int) -> None:
    whole, size = torch.stack(sampler(8, Rng((0, 7)), LIKE), 1), 8 // ranks
    parts = [tuple(range(k * size, (k + 1) * size)) for k in range(ranks)]
    assert torch.equal(torch.cat([torch.stack(sampler(size, Rng((0, 7), p, 8), LIKE), 1) for p in parts]), whole)
