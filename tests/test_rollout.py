"""Walks down the grid. With the exact flow map any number of steps, and any shortcut, ends in the same place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowmap import FlowMap, Rng, sample
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.guidance import Guided, guided_euler_step
from flowmap.rollout import (
    ConsistencySimulation,
    FlowMapBackwardSimulation,
    Rollout,
    Step,
    consistency_step,
    euler_step,
    generate,
    ode_step,
    restart_step,
    walk,
)
from flowmap.testing import CountingFlowMap, GaussianFlowMap, GuidedGaussianFlowMap
from flowmap.times import euler_grid
from tests.toys import CHANNELS, CHUNK, TEXT, Toy

MEAN, STD = 0.5, 0.3
U = GaussianFlowMap(MEAN, STD)
BUDGETS = (2, 4, 8, 16, 50)


def noise(n: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return Rng.seeded(0).noise_like(torch.zeros(n, 1, dtype=torch.float64)).to(dtype)


class Chosen(Rng):
    """Draws the integers it was told to."""

    def __init__(self, *integers: int) -> None:
        super().__init__((0,))
        self.integers = [*integers]

    def randint(self, n: int) -> int:
        i = self.integers.pop(0)
        assert 0 <= i < n
        return i


class Path(FlowMap):
    """Remembers the jumps it was asked for, and is 0: the state stays."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.jumps: list[tuple[float, float]] = []
        self.states: list[torch.dtype] = []
        self.dtype = dtype

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.jumps.append((float(t[0]), float(r[0])))
        self.states.append(z.dtype)
        return torch.zeros_like(z, dtype=self.dtype)


def every_draw(budgets: tuple[int, ...] = BUDGETS) -> list[tuple[int, int, int]]:
    """(index of the budget, n, i) of all draws."""
    return [(k, n, i) for k, n in enumerate(budgets) for i in range(n)]


@pytest.mark.parametrize("steps", [2, 3, 7, 50])
def test_the_true_flow_map_samples_the_same_in_any_number_of_steps(steps: int) -> None:
    torch.testing.assert_close(sample(U, noise(), {}, steps, shift=5.0), MEAN + STD * noise(), atol=1e-6, rtol=1e-6)


def test_the_rollout_of_the_true_flow_map_does_not_depend_on_the_draw() -> None:
    for k, _, i in every_draw():
        x = FlowMapBackwardSimulation(BUDGETS)(U, noise(), {}, Chosen(k, i))
        torch.testing.assert_close(x, MEAN + STD * noise(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("budget", [1, *BUDGETS])
def test_a_rollout_jumps_to_the_step_along_it_and_to_the_end(budget: int) -> None:
    grid = euler_grid(budget, 5.0)
    counts = []
    for i in range(budget):
        u = Path()
        FlowMapBackwardSimulation((budget,))(u, noise(2), {}, Chosen(0, i))
        corners = [1.0, *([float(grid[i])] if i else []), *([float(grid[i + 1])] if i + 1 < budget else []), 0.0]
        assert u.jumps == list(pairwise(corners))
        counts.append(len(u.jumps))
    assert sum(counts) / budget == pytest.approx(3 - 2 / budget if budget > 1 else 1)


def test_the_mean_number_of_jumps_over_the_budgets_is_2_617() -> None:
    mean = 0.0
    for k, n, i in every_draw():
        u = Path()
        FlowMapBackwardSimulation(BUDGETS)(u, noise(2), {}, Chosen(k, i))
        mean += len(u.jumps) / n / len(BUDGETS)
    assert mean == pytest.approx(2.617, abs=5e-4)


def test_budget_and_step_are_drawn_anew_and_uniformly() -> None:
    n, seen = 800, Counter[tuple[tuple[float, float], ...]]()
    for seed in range(n):
        u = Path()
        FlowMapBackwardSimulation((2, 4))(u, noise(1), {}, Rng.seeded(seed))
        seen[tuple(u.jumps)] += 1
    expected = [1 / 2, 1 / 8, 1 / 8, 1 / 8, 1 / 8]  # both steps of two make the same jumps
    found = sorted((count / n for count in seen.values()), reverse=True)
    assert len(found) == len(expected)
    assert all(abs(f - e) < 4 * (e * (1 - e) / n) ** 0.5 for f, e in zip(found, expected, strict=True))


def test_the_draw_is_the_same_in_every_micro_batch() -> None:
    paths = []
    for positions in ((0, 1), (2, 3), None):
        u = Path()
        FlowMapBackwardSimulation()(u, noise(2), {}, Rng((5, 6), positions, 4 if positions else None))
        paths.append(u.jumps)
    assert paths[0] == paths[1] == paths[2]


def test_a_gradient_reaches_every_jump() -> None:
    class Three(GaussianFlowMap):
        """Three jumps, each with a bias of its own."""

        def __init__(self) -> None:
            super().__init__(MEAN, STD)
            self.biases = torch.nn.Parameter(torch.zeros(3))
            self.calls = 0

        def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
            self.calls += 1
            return super().forward(z, t, r, cond) + self.biases[self.calls - 1]

    u = Three()
    FlowMapBackwardSimulation((4,), 1.0)(u, noise(), {}, Chosen(0, 1)).sum().backward()
    assert u.biases.grad is not None and u.calls == 3
    assert (u.biases.grad.abs() > 0.1).all()


class Jumps(Chosen):
    """Its forks draw from the same list."""

    def fork(self, *key: int) -> Rng:
        return self


class Linear(FlowMap):
    """u = a z + b in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.7, -0.2))

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return self.a * z + self.b


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("i, jumps", [(0, 2), (1, 3), (3, 2)])
def test_the_gradient_through_one_jump_counts_as_often_as_there_are_jumps(i: int, jumps: int, replay: bool) -> None:
    """Of the k-th of K: -K (t - r) z_k for a and -K (t - r) for b, and nothing of how z_k came to be."""
    u, z, grid = Linear(), noise(), euler_grid(4, 1.0).double()
    a, b = float(u.a.detach()), float(u.b.detach())
    usual = FlowMapBackwardSimulation((4,), 1.0)(u, z, {}, Jumps(0, i)).detach()
    corners = sorted({1.0, float(grid[i]), float(grid[i + 1]), 0.0}, reverse=True)
    assert len(corners) == jumps + 1
    for drawn, (t, r) in enumerate(pairwise(corners)):
        x = FlowMapBackwardSimulation((4,), 1.0, replay, one_jump=True)(u, z, {}, Jumps(0, i, drawn, drawn))
        assert torch.equal(x.detach(), usual)
        found = torch.autograd.grad(x.sum(), (u.a, u.b))
        here = z
        for before, after in pairwise(corners[: drawn + 1]):
            here = here - (before - after) * (a * here + b)
        wanted = -jumps * (t - r) * here.sum(), torch.tensor(-jumps * (t - r) * z.numel(), dtype=torch.float64)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_where_u_does_not_depend_on_z_the_mean_over_the_jumps_is_the_gradient_of_all() -> None:
    u, z = Linear(), noise()
    with torch.no_grad():
        u.a.zero_()
    (whole,) = torch.autograd.grad(FlowMapBackwardSimulation((4,), 1.0)(u, z, {}, Jumps(0, 1)).sum(), u.b)
    one = FlowMapBackwardSimulation((4,), 1.0, one_jump=True)
    each = [torch.autograd.grad(one(u, z, {}, Jumps(0, 1, k)).sum(), u.b)[0] for k in range(3)]
    torch.testing.assert_close(sum(each) / 3, whole)
    assert each[0] != each[2]


def test_every_chunk_draws_the_jump_that_has_a_graph_and_every_jump_is_drawn() -> None:
    u, z, c = causal(3)
    counted, seen = CountingFlowMap(u), Counter[tuple[bool, ...]]()

    class Written(CountingFlowMap):
        def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
            graphs.append(torch.is_grad_enabled())
            return super().forward(z, t, r, cond, cache)

    for seed in range(12):
        graphs: list[bool] = []
        walk(Written(counted), z, c, euler_grid(2), Rng.seeded(seed), one_jump=True)
        assert [graphs[n] + graphs[n + 1] for n in (0, 2, 4)] == [1, 1, 1]
        seen[tuple(graphs[::2])] += 1
    assert len(seen) > 4 and counted.graph == 12 * 3 * len(z)
    with pytest.raises(ValueError, match=r"history_grad = 'packed': must be True with one_jump"):
        FlowMapBackwardSimulation(one_jump=True, history_grad="packed")


@pytest.mark.parametrize("exit_at", range(4))
def test_consistency_simulation_stops_where_it_is_told_and_only_its_last_jump_has_a_graph(exit_at: int) -> None:
    u = CountingFlowMap(GaussianFlowMap(MEAN, STD))
    x = ConsistencySimulation()(u, noise(3), {}, Chosen(exit_at))
    assert (u.graph, u.plain) == (3, 3 * exit_at)
    assert x.requires_grad


@pytest.mark.parametrize("exit_at", range(4))
def test_consistency_simulation_jumps_to_data_and_noises_again(exit_at: int) -> None:
    u = Path()
    ConsistencySimulation((1.0, 0.9, 0.8, 0.5))(u, noise(2), {}, Chosen(exit_at))
    assert u.jumps == [(pytest.approx(t), 0.0) for t in (1.0, 0.9, 0.8, 0.5)[: exit_at + 1]]


@pytest.mark.parametrize("rollout", [FlowMapBackwardSimulation(), ConsistencySimulation()])
@pytest.mark.parametrize("seed", range(4))
def test_a_rollout_of_the_true_flow_map_ends_in_the_data(rollout: Rollout, seed: int) -> None:
    z = Rng.seeded(seed, 1).noise_like(torch.zeros(20_000, 1))
    x = rollout(U, z, {}, Rng.seeded(seed)).detach()
    assert abs(float(x.mean()) - MEAN) < 4 * STD / 20_000**0.5
    assert abs(float(x.std()) - STD) < 4 * STD / 40_000**0.5


@given(rt=st.tuples(st.floats(0, 0.99), st.floats(0.01, 1)).map(sorted))
def test_restart_with_gamma_0_is_the_flow_map_and_with_gamma_1_the_consistency_sampler(rt: list[float]) -> None:
    z, (t, r) = noise(), (torch.full((6,), value, dtype=torch.float64) for value in reversed(rt))

    def after(step: Step) -> Tensor:
        return step(U, z, t, r, {}, None, Rng.seeded(3))

    torch.testing.assert_close(after(restart_step(0.0)), U.jump(z, t, r, {}))
    torch.testing.assert_close(after(ode_step), U.jump(z, t, r, {}))
    torch.testing.assert_close(after(restart_step(1.0)), after(consistency_step))
    x, fresh = U.jump(z, t, torch.zeros_like(t), {}), Rng.seeded(3).noise_like(z)
    torch.testing.assert_close(after(consistency_step), (1 - r)[:, None] * x + r[:, None] * fresh)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_every_restart_of_the_true_flow_map_keeps_the_marginals(gamma: float) -> None:
    z = Rng.seeded(1).noise_like(torch.zeros(40_000, 1))
    x = sample(U, z, {}, 3, shift=5.0, step=restart_step(gamma), rng=Rng.seeded(2))
    assert abs(float(x.mean()) - MEAN) < 5 * STD / 40_000**0.5
    assert abs(float(x.std()) - STD) < 5 * STD / 80_000**0.5


STEPS = [ode_step, euler_step, consistency_step, restart_step(0.5)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("steps", [1, 4])
def test_every_sampler_ends_at_exactly_zero(step: Step, steps: int) -> None:
    """Its last call is to a time that is 0, and what it returns has no noise: the same whatever noise is drawn last."""
    u = Path()
    grid = euler_grid(steps, 5.0)
    walk(u, noise(2), {}, grid, Rng.seeded(0), step=step)
    assert u.jumps[-1][1] == 0.0 or step is euler_step
    t, r = grid[-2].expand(2), grid[-1].expand(2)
    out = [step(U, noise(2), t, r, {}, None, Rng.seeded(seed)) for seed in (0, 1)]
    assert torch.equal(*out)


def test_euler_steps_of_the_velocity_converge_to_the_flow() -> None:
    exact = MEAN + STD * noise()
    errors = [float((sample(U, noise(), {}, n, step=euler_step) - exact).abs().max()) for n in (50, 100)]
    assert sample(U, noise(), {}, 2, step=euler_step).shape == exact.shape
    assert errors[1] < 0.02
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_guided_euler_steps_converge_to_the_guided_flow() -> None:
    c, null = {"label": torch.ones(6)}, {"label": torch.zeros(1)}
    teacher, student = GuidedGaussianFlowMap(w=1.0), GuidedGaussianFlowMap(w=3.0)
    walked = sample(teacher, noise(), c, 200, step=guided_euler_step(3.0, null))
    torch.testing.assert_close(walked, sample(student, noise(), c, 1), atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_state_is_float32_whatever_the_network_returns(dtype: torch.dtype) -> None:
    u = Path(dtype)
    x = sample(u, noise(2, dtype), {}, 8, step=restart_step(0.5))
    assert {*u.states} == {torch.float32}
    assert x.dtype == torch.float32


def test_a_bfloat16_network_is_given_a_float32_state_in_training_rollouts() -> None:
    u = Path(torch.bfloat16)
    FlowMapBackwardSimulation((4,))(u, noise(2, torch.float32), {}, Chosen(0, 1))
    assert {*u.states} == {torch.float32}


def test_sampling_builds_no_graph() -> None:
    assert not sample(GaussianFlowMap(), noise(), {}, 2).requires_grad


# ------------------------------------------------------------------ chunk after chunk


def causal(chunks: int = 2, **fields: bool) -> tuple[FlowMap, Latent, Cond]:
    spec, rng = Toy(causal=True, **fields), Rng.seeded(0)  # type: ignore[arg-type]
    u = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    z, text = torch.zeros(2, chunks * CHUNK, CHANNELS, 2, 2), torch.zeros(2, TEXT)
    return u, rng.noise_like(z), {"text": rng.noise_like(text)}


class Watched(CountingFlowMap):
    """Writes down how much history each call had, and how often the history was extended."""

    def __init__(self, u: FlowMap) -> None:
        super().__init__(u)
        self.histories: list[int] = []
        self.extended = 0

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.histories.append(0 if cache is None else cache[0].shape[1] // CHUNK)
        return super().forward(z, t, r, cond, cache)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        assert not torch.is_grad_enabled()
        self.extended += 1
        return super().extend(cache, x, cond)


def test_a_causal_network_walks_chunk_after_chunk() -> None:
    u, z, c = causal()
    grid = euler_grid(2)
    first = walk(u, z[:, :2], c, grid, Rng.seeded(0))
    cache = u.extend(None, first, c)
    second, t = z[:, 2:], grid[:, None].expand(-1, len(z))
    for a, b in pairwise(t):
        second = u.jump(second, a, b, c, cache)
    torch.testing.assert_close(walk(u, z, c, grid, Rng.seeded(0)), torch.cat([first, second], 1))


def test_the_cache_is_extended_between_chunks_only() -> None:
    """The last chunk has no successor that would read it: encoding it is a call for nothing."""
    u, z, c = causal(3)
    watched = Watched(u)
    walk(watched, z, c, euler_grid(2), Rng.seeded(0))
    assert watched.extended == 2
    assert watched.histories == [0, 0, 1, 1, 2, 2]


def test_between_chunks_gradients_stop() -> None:
    u, z, c = causal()
    z = z.clone().requires_grad_(True)
    x = walk(u, z, c, euler_grid(2), Rng.seeded(0))
    (g,) = torch.autograd.grad(x[:, 2:].sum(), z)
    assert not g[:, :2].any() and g[:, 2:].any()


def test_only_the_last_steps_of_each_chunk_have_a_graph_where_asked() -> None:
    u, z, c = causal()
    counted = CountingFlowMap(u)
    walk(counted, z, c, euler_grid(4), Rng.seeded(0), grad_last=1)
    assert (counted.graph, counted.plain) == (2 * 2, 2 * 3 * 2)


def test_a_chunk_is_made_when_it_is_asked_for_and_whoever_asks_says_whether_there_is_a_graph() -> None:
    u, z, c = causal(3)
    watched, asked = Watched(u), list[int]()

    def lazily() -> Iterator[Latent]:
        for k, chunk in enumerate(z.split(CHUNK, dim=1)):
            asked.append(k)
            yield chunk

    made, found = generate(watched, lazily(), c, euler_grid(2), Rng.seeded(0)), list[Latent]()
    for k, graph in enumerate((True, False, True)):
        with torch.set_grad_enabled(graph):
            found.append(next(made))
            assert torch.is_grad_enabled() is graph
        assert (asked, watched.extended, found[-1].requires_grad) == ([*range(k + 1)], k, graph)
    assert next(made, None) is None
    assert watched.extended == 2
    torch.testing.assert_close(torch.cat(found, 1), walk(u, z, c, euler_grid(2), Rng.seeded(0)))


def test_each_chunk_draws_for_itself_and_a_walk_leaves_its_rng_as_it_was() -> None:
    class Still(Path):
        def chunks(self, frames: int) -> tuple[int, ...]:
            return (1,) * frames

    rng, z = Rng.seeded(3), torch.zeros(2, 3, 4)
    x = walk(Still(), z, {}, euler_grid(2), rng, step=consistency_step)
    assert torch.equal(walk(Still(), z, {}, euler_grid(2), rng, step=consistency_step), x)
    assert all(not torch.isclose(x[:, i], x[:, j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("step", STEPS)
def test_without_an_rng_a_sample_is_a_function_of_its_own_noise(step: Step) -> None:
    """In one batch or in several, where one stream for every call would renew all batches with one noise."""
    u, z, c = causal(3)
    z = torch.cat([z, z.flip(0) + 1])
    c = {"text": c["text"].repeat(2, 1)}
    whole = sample(u, z, c, 3, step=step)
    parts = [sample(u, z[k : k + 1], {"text": c["text"][k : k + 1]}, 3, step=step) for k in range(len(z))]
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(sample(u, z, c, 3, step=step), whole)


def test_batches_that_are_sampled_one_by_one_share_no_renewed_noise() -> None:
    """A network that is 0 leaves z as it is: after two steps half of the sample is renewed noise."""
    z = noise(4, torch.float32)[..., None].expand(-1, -1, 500)
    a, b = (sample(Path(), part, {}, 2, step=consistency_step) - part / 2 for part in z.split(2))
    assert torch.corrcoef(torch.cat([a, b]).flatten(1)).fill_diagonal_(0).abs().max() < 0.2


# ------------------------------------------------------------------ going on from frames that are given


@pytest.mark.parametrize("given", [1, 2])
@pytest.mark.parametrize("step", [ode_step, consistency_step, euler_step])
def test_a_video_that_goes_on_from_its_own_beginning_is_the_same_video(step: Step, given: int) -> None:
    u, z, c = causal(3)
    whole = sample(u, z, c, 3, step=step)
    first = whole[:, : given * CHUNK]
    other = torch.cat([torch.full_like(first, 9.0), z[:, given * CHUNK :]], 1)  # its noise is not used
    assert torch.equal(sample(u, other, c, 3, step=step, context=first), whole)


def test_the_frames_that_are_given_come_back_and_nothing_is_written_to() -> None:
    u, z, c = causal()
    context = Rng.seeded(5).noise_like(z[:, :CHUNK])
    before = context.clone(), z.clone()
    x = sample(u, z, c, 2, context=context)
    assert torch.equal(x[:, :CHUNK], context) and torch.equal(context, before[0]) and torch.equal(z, before[1])
    x.zero_()
    assert torch.equal(context, before[0])


def test_frames_of_another_type_are_taken_at_the_states() -> None:
    u, z, c = causal()
    x = sample(u, z, c, 2, context=z[:, :CHUNK].bfloat16())
    assert x.dtype == torch.float32
    assert torch.equal(x[:, :CHUNK], z[:, :CHUNK].bfloat16().float())


def test_no_frames_are_as_good_as_none() -> None:
    u, z, c = causal()
    assert torch.equal(sample(u, z, c, 2, context=z[:, :0]), sample(u, z, c, 2))


@pytest.mark.parametrize(
    "frames, message",
    [
        (1, "context frames = 1: must be 2 or 4, where a chunk ends and another is left to make"),
        (5, "context frames = 5: must be 2 or 4, where"),
        (6, "context frames = 6: must be 2 or 4, where"),
        (8, "context frames = 8: must be 2 or 4, where"),
    ],
)
def test_frames_that_fill_no_chunks_are_refused(frames: int, message: str) -> None:
    u, z, c = causal(3)
    with pytest.raises(ValueError, match=message):
        sample(u, z, c, 2, context=torch.zeros(2, frames, CHANNELS, 2, 2))


def test_a_network_that_makes_all_frames_at_once_takes_none_as_given() -> None:
    u = Toy().build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    z, c = Toy().example()
    with pytest.raises(ValueError, match="context frames = 1: this network makes all 4 at once, and takes none"):
        sample(u, z, c, 2, context=z[:, :1])


@pytest.mark.parametrize("shape", [(1, 2, 2, 2, 2), (2, 2, 3, 2, 2), (2, 2, 2, 2, 4), (2, 2, 2, 2)])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    u, z, c = causal()
    with pytest.raises(ValueError, match=r"context is \(.*\): must be as noise is, \(2, 4, 2, 2, 2\), in all but fra"):
        sample(u, z, c, 2, context=torch.zeros(shape))


# ------------------------------------------------------------------ walking again in the backward pass


def rolled_out(u: FlowMap, z: Latent, c: Cond, rollout: Rollout, *drawn: int) -> tuple[Latent, dict[str, Tensor]]:
    """(x, gradients of a loss of it); the loss weighs elements, or its gradient would be the same everywhere."""
    u.zero_grad()
    x = rollout(u, z, c, Chosen(*drawn))
    (x * torch.arange(1.0, x.numel() + 1).reshape(x.shape)).sum().backward()
    return x.detach(), {name: p.grad for name, p in u.named_parameters() if p.grad is not None}


ROLLOUTS: list[tuple[type[FlowMapBackwardSimulation | ConsistencySimulation], tuple[int, ...]]] = [
    (FlowMapBackwardSimulation, (1, 2)),
    (ConsistencySimulation, (0,)),
    (ConsistencySimulation, (3,)),
]


@pytest.mark.parametrize("kind, drawn", ROLLOUTS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("chunks", [1, 3])
def test_a_rollout_walked_again_has_the_same_samples_and_the_same_gradient(
    kind: type[FlowMapBackwardSimulation | ConsistencySimulation],
    drawn: tuple[int, ...],
    checkpointing: bool,
    shared: bool,
    chunks: int,
) -> None:
    u, z, c = causal(chunks, checkpointing=checkpointing, shared=shared)
    x, plain = rolled_out(u, z, c, kind(), *drawn)
    again, replayed = rolled_out(u, z, c, kind(replay=True), *drawn)
    assert torch.equal(again, x)
    assert plain and replayed.keys() == plain.keys()
    for name, g in plain.items():
        torch.testing.assert_close(replayed[name], g, rtol=1e-5, atol=1e-6 * float(g.abs().max()))


def test_chunks_are_walked_again_one_after_the_other_and_whole() -> None:
    u, z, c = causal(3)
    watched = Watched(u)
    rolled_out(watched, z, c, FlowMapBackwardSimulation((4,), replay=True), 0, 1)
    assert watched.histories == [*(0, 0, 0, 1, 1, 1, 2, 2, 2), *(2, 2, 2, 1, 1, 1, 0, 0, 0)]
    assert watched.extended == 2


def test_what_is_walked_again_is_not_in_memory_before() -> None:
    u, z, c = causal(3)
    held = []

    def rolled(replay: bool) -> int:
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
            x = walk(u, z, c, euler_grid(4), Rng.seeded(0), replay=replay)
        assert x.requires_grad
        return sum(held)

    assert rolled(replay=False) > 100 * z.numel()
    assert rolled(replay=True) == z.numel()  # what each chunk starts from


def test_without_a_graph_nothing_is_walked_again() -> None:
    u, z, c = causal()
    watched = Watched(u)
    with torch.no_grad():
        FlowMapBackwardSimulation((4,), replay=True)(watched, z, c, Chosen(0, 1))
    assert watched.histories == [0, 0, 0, 1, 1, 1]


# ------------------------------------------------------------------ guidance


NULL = {"text": torch.zeros(1, TEXT)}


def test_a_guided_network_is_the_guided_velocity() -> None:
    c, null = {"label": torch.ones(6)}, {"label": torch.zeros(1)}
    teacher, t = GuidedGaussianFlowMap(w=1.0), torch.full((6,), 0.7)
    torch.testing.assert_close(Guided(teacher, 3.0, null)(noise(), t, t, c), teacher.velocity(noise(), t, c, null, 3.0))
    stepped = sample(teacher, noise(), c, 4, step=guided_euler_step(3.0, null))
    torch.testing.assert_close(sample(Guided(teacher, 3.0, null), noise(), c, 4, step=euler_step), stepped)


def test_in_chunks_each_branch_of_guidance_has_its_own_history() -> None:
    u, z, c = causal()
    grid, w, without = euler_grid(3), 3.0, {"text": torch.zeros(2, TEXT)}
    branches: list[tuple[Cond, Cache]] = [(c, None), (without, None)]
    found = []
    for x in z.split(CHUNK, dim=1):
        for t, r in pairwise(grid[:, None].expand(-1, len(z))):
            v, v_null = (u(x, t, t, cond, cache) for cond, cache in branches)
            x = x - (t - r).reshape(-1, 1, 1, 1, 1) * (v_null + w * (v - v_null))
        branches = [(cond, u.extend(cache, x, cond)) for cond, cache in branches]
        found.append(x)
    torch.testing.assert_close(sample(Guided(u, w, NULL), z, c, 3, step=euler_step), torch.cat(found, 1))


@pytest.mark.parametrize("w, branches", [(3.0, 2), (1.0, 1)])
def test_a_guided_network_costs_a_call_a_branch_in_one_batch(w: float, branches: int) -> None:
    u, z, c = causal()
    watched = Watched(u)
    sample(Guided(watched, w, NULL), z, c, 3, step=euler_step)
    assert (len(watched.histories), watched.plain, watched.extended) == (6, 6 * len(z) * branches, 1)


def test_without_a_condition_the_branches_are_one_and_without_a_null_guidance_is_refused() -> None:
    t = torch.full((6,), 0.7)
    torch.testing.assert_close(Guided(U, 3.0, {})(noise(), t, t, {}), U(noise(), t, t, {}))
    with pytest.raises(ValueError, match="needs a null condition"):
        Guided(U, 3.0, {})(noise(), t, t, {"text": noise()})


def test_a_guided_step_does_not_take_a_history_of_one_branch() -> None:
    u, z, c = causal()
    with pytest.raises(ValueError, match=r"walk Guided\(u, w, null\) of flowmap.guidance with euler_step"):
        sample(u, z, c, 2, step=guided_euler_step(3.0, NULL))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FlowMapBackwardSimulation(()), r"steps = \(\): must name at least one budget"),
        (lambda: FlowMapBackwardSimulation((2, 0)), r"steps = \(2, 0\): .* each at least 1"),
        (lambda: FlowMapBackwardSimulation(shift=0.0), r".shift = .*: must be .*> 0"),
        (lambda: ConsistencySimulation(()), "must decrease strictly from 1"),
        (lambda: ConsistencySimulation((0.9, 0.5)), r"times = \(0.9, 0.5\): must decrease strictly from 1"),
        (lambda: ConsistencySimulation((1.0, 0.5, 0.5)), "must decrease strictly"),
        (lambda: ConsistencySimulation((1.0, 0.0)), "stay above 0"),
    ],
)
def test_a_wrong_value_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
