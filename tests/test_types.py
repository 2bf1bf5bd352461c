"""Randomness by key, conditions, and means that survive micro-batches."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowmap._types import Batch, Mean, Rng, Shared, concat, nullify, select

LIKE = torch.zeros(1)
pieces = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def split(sizes: list[int]) -> list[tuple[int, ...]]:
    """0 .. sum(sizes) - 1 in consecutive pieces."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [tuple(range(a, a + n)) for a, n in zip(starts, sizes, strict=True)]


@pytest.mark.parametrize("draw", ["uniform", "normal", "stratified"])
@given(sizes=pieces)
def test_a_split_batch_draws_what_the_whole_draws(draw: str, sizes: list[int]) -> None:
    total = sum(sizes)
    whole = getattr(Rng((3, 1)), draw)(total, LIKE)
    parts = [getattr(Rng((3, 1), positions, total), draw)(len(positions), LIKE) for positions in split(sizes)]
    assert torch.equal(torch.cat(parts), whole)


@given(sizes=pieces)
def test_a_split_batch_has_the_noise_of_the_whole(sizes: list[int]) -> None:
    total, x = sum(sizes), torch.zeros(sum(sizes), 2, 3)
    whole = Rng((3, 1)).noise_like(x)
    parts = [Rng((3, 1), p, total).noise_like(x[list(p)]) for p in split(sizes)]
    assert torch.equal(torch.cat(parts), whole)


@given(total=st.integers(1, 64), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_stratified_shares_are_off_by_less_than_one_sample(total: int, share: float, seed: int) -> None:
    u = Rng.seeded(seed).stratified(total, LIKE)
    assert abs(int((u < share).sum()) - share * total) < 1 + 1e-4


def test_a_draw_depends_on_the_key_and_the_number_of_the_draw() -> None:
    a, b, other = Rng.seeded(0, 1), Rng.seeded(0, 1), Rng.seeded(0, 2)
    first = a.uniform(8, LIKE)
    assert torch.equal(b.uniform(8, LIKE), first)
    assert not torch.equal(a.uniform(8, LIKE), first)
    assert not torch.equal(other.uniform(8, LIKE), first)
    assert not torch.equal(Rng.seeded(0, 1).fork(5).uniform(8, LIKE), first)


def test_nothing_else_disturbs_a_draw() -> None:
    expected = Rng.seeded(0).normal(8, LIKE)
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(Rng.seeded(0).normal(8, LIKE), expected)


def test_a_draw_of_another_size_than_the_positions_is_an_error() -> None:
    with pytest.raises(ValueError, match="a draw for 3 samples, but this Rng stands for 2"):
        Rng((0,), (0, 1), 8).uniform(3, LIKE)


@pytest.mark.parametrize("given, drawn", [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_noise_is_at_least_float32(given: str, drawn: str) -> None:
    assert Rng.seeded(0).noise_like(torch.zeros(2, dtype=getattr(torch, given))).dtype == getattr(torch, drawn)


def test_nullify_replaces_what_null_names_and_keeps_the_rest() -> None:
    cond = {"text": torch.ones(3, 2), "history": torch.arange(3.0)}
    everywhere = nullify(cond, {"text": torch.zeros(1, 2)})
    assert torch.equal(everywhere["text"], torch.zeros(3, 2))
    assert torch.equal(everywhere["history"], cond["history"])
    second = nullify(cond, {"text": torch.zeros(1, 2)}, torch.tensor([False, True, False]))
    assert second["text"].sum(1).tolist() == [2, 0, 2]


def test_conditions_concatenate_and_select() -> None:
    cond = {"text": torch.arange(3.0)}
    assert concat(cond, cond)["text"].tolist() == [0, 1, 2, 0, 1, 2]
    assert select(cond, torch.tensor([2, 0]))["text"].tolist() == [2, 0]
    assert len(Batch(torch.zeros(3, 1), cond, {})) == 3


@given(n=st.integers(2, 20), cut=st.integers(1, 19), seed=st.integers(0, 9))
def test_means_merge(n: int, cut: int, seed: int) -> None:
    v = Rng.seeded(seed).normal(n, LIKE)
    merged = Mean.of(v[:cut]) + Mean.of(v[cut:])
    torch.testing.assert_close(merged.value, v.mean(), atol=1e-4, rtol=1e-5)


def test_a_mean_ignores_what_is_masked_even_where_it_is_not_finite() -> None:
    values, mask = torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([True, False, True])
    assert float(Mean.of(values, mask).value) == 2.0
    assert Mean.of(values, ~mask & False).value.isnan()


def test_a_mean_has_no_graph() -> None:
    assert not Mean.of(torch.ones(2, requires_grad=True)).total.requires_grad


def test_shared_means_grow_over_micro_batches_and_outlive_the_iteration() -> None:
    shared, all_of, none_of = Shared(), torch.tensor([True, True]), torch.tensor([False, False])
    assert shared.mean("a", torch.ones(2), none_of).isnan()
    assert float(shared.mean("a", torch.tensor([1.0, 3.0]), all_of)) == 2.0
    assert float(shared.mean("a", torch.tensor([4.0, 8.0]), all_of)) == 4.0
    shared.next()
    assert float(shared.mean("a", torch.ones(2), none_of)) == 4.0
    assert float(shared.mean("a", torch.tensor([6.0, 0.0]), torch.tensor([True, False]))) == 6.0
    shared.next()
    shared.next()  # an iteration that asked for nothing changes nothing
    assert float(shared.mean("a", torch.ones(2), none_of)) == 6.0
    shared.next()  # nor does one that had nothing to count
    loaded = Shared()
    loaded.load(shared.state())
    assert float(loaded.mean("a", torch.ones(2), none_of)) == 6.0


def test_a_mean_decays_from_iteration_to_iteration_and_rests_where_nothing_is_counted() -> None:
    shared, groups = Shared(), torch.tensor([[True, False, False], [True, True, False]])
    first = shared.mean("a", torch.tensor([1.0, 3.0]), groups, 0.5)
    torch.testing.assert_close(first, torch.tensor([2.0, 3.0, torch.nan]), equal_nan=True)
    again = shared.mean("a", torch.tensor([2.0, 2.0]), groups, 0.5)  # of the same iteration: another micro-batch
    torch.testing.assert_close(again, torch.tensor([2.0, 2.5, torch.nan]), equal_nan=True)
    shared.next()
    state, one = shared.state(), torch.tensor([[True, False, False], [False] * 3])
    later = shared.mean("a", torch.tensor([10.0, torch.nan]), one, 0.5)
    torch.testing.assert_close(later, torch.tensor([(0.5 * 8 + 10) / (0.5 * 4 + 1), 2.5, torch.nan]), equal_nan=True)
    other = Shared()
    other.load(json.loads(json.dumps(state)))
    assert torch.equal(other.mean("a", torch.tensor([10.0, 0.0]), one, 0.5)[:2], later[:2])


def test_samples_are_kept_detached_by_micro_batch_for_one_iteration() -> None:
    shared, x = Shared(), torch.ones(2, requires_grad=True)
    first, second = Rng((0,), (0, 1), 4), Rng((0,), (2, 3), 4)
    shared.keep(first, 2 * x)
    kept = shared.kept(Rng((9,), (0, 1), 4))
    assert kept is not None and not kept.requires_grad
    assert shared.kept(second) is None
    shared.next()
    assert shared.kept(first) is None


def test_stratified_stays_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """(31 + 0.99999994) / 32 is 1 in float32."""
    monkeypatch.setattr(Rng, "uniform", lambda self, n, like: torch.full((n,), 1 - 2**-24))
    assert float(Rng.seeded(0).stratified(32, LIKE).max()) < 1.0


@given(sizes=pieces)
def test_a_sample_that_draws_by_its_own_noise_draws_the_same_in_any_batch(sizes: list[int]) -> None:
    noise = Rng.seeded(5).noise_like(torch.zeros(sum(sizes), 2, 3))

    def drawn(part: torch.Tensor) -> torch.Tensor:
        rng = Rng.of(part, 1)
        return torch.cat([rng.noise_like(part).flatten(1), rng.uniform(len(part), LIKE)[:, None]], 1)

    whole = drawn(noise)
    assert torch.equal(torch.cat([drawn(part) for part in noise.split(sizes)]), whole)
    assert len(whole.unique(dim=0)) == len(noise)


def test_draws_of_a_noise_differ_by_key_and_number_and_are_for_its_samples_alone() -> None:
    noise = Rng.seeded(5).noise_like(torch.zeros(2, 3))
    rng = Rng.of(noise, 1)
    first = rng.noise_like(noise)
    assert not torch.isclose(rng.noise_like(noise), first).any()
    assert not torch.isclose(Rng.of(noise, 2).noise_like(noise), first).any()
    assert torch.equal(Rng.of(noise).fork(1).noise_like(noise), first)
    with pytest.raises(ValueError, match="a draw for 3 samples, but this Rng stands for 2"):
        rng.uniform(3, LIKE)
