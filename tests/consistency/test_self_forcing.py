"""Trajectories, rollouts chunk after chunk, and noised data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowmap_consistency import causvid, self_forcing
from flowmap_consistency.causvid import OnNoisedData
from flowmap_consistency.chunked import NoisedData, draw, sweep
from flowmap_consistency.self_forcing import TrajectoryRegression, step_list
from torch import Tensor

from flowmap import AdamW, Batch, FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Role, Shared, Time
from flowmap.method import Method, Update
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.rollout import ConsistencySimulation
from flowmap.testing import GaussianFlowMap, GuidedGaussianFlowMap
from flowmap.times import Diagonal, Uniform
from tests.toys import CHUNK, Toy

N = 256
TIMES = (1.0, 0.75, 0.5, 0.25)


def batch(n: int = N, elements: int = 8) -> Batch:
    x = 0.5 + 0.5 * Rng.seeded(7).noise_like(torch.empty(n, elements, dtype=torch.float64))
    return Batch(x, {}, {})


def of(mean: float, std: float = 0.5) -> GaussianFlowMap:
    return GaussianFlowMap(mean, std)


class Chunked(FlowMap):
    """Chunks of two frames [B, F, ...]; remembers calls and histories; u = weight · z + the mean of the history."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.calls: list[tuple[Tensor, Tensor, Any]] = []

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.calls.append((z, t, cache))
        return self.weight * z + (0.0 if cache is None else cache.mean())

    def chunks(self, frames: int) -> tuple[int, ...]:
        return (2,) * (frames // 2)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        new = self.weight * x
        return new if cache is None else torch.cat([cache, new], 1)


def seeded(*shape: int, key: int = 0) -> Tensor:
    return Rng.seeded(11, key).noise_like(torch.empty(shape))


# ---------------------------------------------------------------------------- a sweep


def test_a_sweep_of_one_chunk_is_a_jump() -> None:
    u, z, t = of(0.5), seeded(4, 6), torch.tensor([0.2, 0.4, 0.6, 1.0])
    torch.testing.assert_close(sweep(u, [z], [t], seeded(4, 6, key=1), {}), u.jump(z, t, torch.zeros(4), {}))


def test_every_chunk_has_its_own_time_and_the_clean_chunks_before_it() -> None:
    u, x = Chunked(), seeded(3, 6, key=1)
    z, t = seeded(3, 6).split(2, 1), [torch.full((3,), s) for s in (0.9, 0.5, 0.1)]
    made = sweep(u, z, t, x, {})
    assert made.shape == x.shape
    for k, (state, time, cache) in enumerate(u.calls):
        assert state is z[k] and time is t[k]
        if k:
            assert not cache.requires_grad
            torch.testing.assert_close(cache, 0.5 * x[:, : 2 * k])
        else:
            assert cache is None
    history = 0.5 * x[:, :2].mean()
    torch.testing.assert_close(made[:, 2:4], z[1] - 0.5 * (0.5 * z[1] + history))


def test_no_gradient_flows_through_the_history() -> None:
    """With what a chunk sees before it held fixed, the gradient is the same."""
    u, x = Chunked(), seeded(3, 4, key=1)
    z, t = seeded(3, 4).split(2, 1), [torch.full((3,), 0.5)] * 2
    (g,) = torch.autograd.grad(sweep(u, z, t, x, {}).sum(), u.weight)
    torch.testing.assert_close(g, -(0.5 * torch.cat(z)).sum())


# ---------------------------------------------------------------------------- trajectories


class Straight(FlowMap):
    """Everything moves at one velocity: Euler steps are exact."""

    def __init__(self, speed: float = 0.7) -> None:
        super().__init__()
        self.speed = torch.nn.Parameter(torch.tensor(speed, dtype=torch.float64))

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return self.speed.expand(z.shape)


def regression_gradient(student: FlowMap, teacher: FlowMap, objective: TrajectoryRegression) -> Tensor:
    nets: Any = {"student": student, "teacher": teacher}
    value = objective(nets, batch(), Rng.seeded(0), Shared()).value
    return torch.stack(torch.autograd.grad(value, [*student.trained().values()]))


def test_where_euler_steps_are_exact_the_true_map_has_no_gradient() -> None:
    objective = TrajectoryRegression(TIMES, 3, 5.0, 1.0)
    assert regression_gradient(Straight(), Straight(), objective).abs().max() < 1e-6  # times are float32
    assert regression_gradient(Straight(0.9), Straight(), objective)[0] > 0.1


def test_elsewhere_the_gradient_at_the_true_map_is_the_error_of_its_steps() -> None:
    def pull(steps: int) -> float:
        return float(regression_gradient(of(0.5), of(0.5), TrajectoryRegression(TIMES, steps, 1.0, 1.0)).abs().max())

    assert pull(64) < 0.02
    assert 1.8 < pull(32) / pull(64) < 2.2


def test_the_trajectory_passes_through_every_listed_time() -> None:
    """Each state goes on to the same end, and the first is the noise."""
    objective, teacher, noise = TrajectoryRegression((1.0, 0.757, 0.522), 50, 8.0, 1.0), Straight(), batch().x
    states, end = objective.trajectory(teacher, noise, batch(), Rng.seeded(0))
    assert torch.equal(states[0], noise) and len(states) == 3
    for t, z in zip(objective.times, states, strict=True):
        torch.testing.assert_close(z - t * 0.7, end, atol=1e-5, rtol=0)


def test_the_teacher_is_guided() -> None:
    """With Euler steps enough, the end is that of the guided flow map."""
    noise = seeded(8, 4)
    told = Batch(noise, {"label": torch.ones(8)}, {"label": torch.zeros(1)})
    objective = TrajectoryRegression((1.0,), 400, 1.0, 3.0)
    _, end = objective.trajectory(GuidedGaussianFlowMap(w=1.0), noise, told, Rng.seeded(0))
    expected = GuidedGaussianFlowMap(w=3.0).jump(noise, torch.ones(8), torch.zeros(8), told.cond)
    torch.testing.assert_close(end, expected.detach(), atol=0.02, rtol=0)


def test_chunks_are_regressed_from_times_of_their_own_after_the_trajectorys_end() -> None:
    student, data = Chunked(), Batch(torch.zeros(64, 4), {}, {})
    objective = TrajectoryRegression(TIMES, 4, 1.0, 1.0)
    objective({"student": student, "teacher": Straight()}, data, Rng.seeded(0), Shared())
    (first, t, none), (second, t2, history) = student.calls
    assert none is None and not torch.equal(t, t2)
    for times in (t, t2):
        assert {round(float(s), 4) for s in times.unique()} == set(TIMES)
    end = first - t[:, None] * 0.7
    torch.testing.assert_close(history, 0.5 * end, atol=1e-5, rtol=1e-5)
    assert second.shape == (64, 2)


def test_a_teacher_in_other_chunks_is_refused() -> None:
    nets: Any = {"student": Straight(), "teacher": Chunked()}
    with pytest.raises(ValueError, match=r"the teacher makes chunks of \(2, 2\) frames: must be \(4,\)"):
        TrajectoryRegression()(nets, Batch(torch.zeros(2, 4), {}, {}), Rng.seeded(0), Shared())


# ---------------------------------------------------------------------------- noised data


def test_data_are_noised_to_their_own_time_and_one_jump_brings_them_back() -> None:
    u, x, noise = Chunked(), seeded(512, 4, key=1), seeded(512, 4)
    made = NoisedData((1.0, 0.5), x)(u, noise, {}, Rng.seeded(0))
    (z, t, _), (z2, t2, history) = u.calls
    for state, time, part in ((z, t, slice(0, 2)), (z2, t2, slice(2, 4))):
        torch.testing.assert_close(state, (1 - time)[:, None] * x[:, part] + time[:, None] * noise[:, part])
        assert abs(float((time == 1).float().mean()) - 0.5) < 4 * (0.25 / 512) ** 0.5
    assert not torch.equal(t, t2)
    torch.testing.assert_close(history, 0.5 * x[:, :2])
    torch.testing.assert_close(made[:, :2], z - t[:, None] * 0.5 * z)


@pytest.mark.parametrize("part", [0, 1])
def test_causvids_student_and_critic_learn_from_noised_data(part: int) -> None:
    """Without guidance the student is called once a chunk, at the data's states, whatever the objective."""
    student, x = Chunked(), 100 + seeded(64, 4)
    ((_, objective),) = causvid.causvid(times=(0.75, 0.25), w=1.0).updates[part].terms
    nets: Any = {"student": student, "teacher": of(0.5), "critic": of(0.5)}
    objective(nets, Batch(x, {}, {}), Rng.seeded(0), Shared())
    assert len(student.calls) == 2
    for z, t, _ in student.calls:
        torch.testing.assert_close(z.mean(1) / (1 - t), torch.full((64,), 100.0), atol=15, rtol=0)


def test_a_draw_that_rounds_to_one_is_a_time_too() -> None:
    class Ones(Rng):
        def uniform(self, n: int, like: Tensor) -> Tensor:
            return torch.ones(n)

    assert draw(2, torch.tensor(TIMES), Ones((0,))).tolist() == [3, 3]


METHODS = {
    "self_forcing": self_forcing.self_forcing(shift=1.0, w=1.0),
    "causvid": causvid.causvid(shift=1.0, w=1.0),
}


def pull(method: Method, student: GaussianFlowMap, seed: int = 0) -> Tensor:
    nets: Any = {"student": student, "critic": student, "teacher": of(0.5).requires_grad_(False)}
    ((weight, objective),) = method.updates[0].terms
    value = weight * objective(nets, batch(elements=16), Rng.seeded(seed), Shared()).value
    return torch.stack(torch.autograd.grad(value, (student.mean, student.std)))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_where_the_student_is_the_teachers_flow_map_there_is_no_gradient(method: Method) -> None:
    for seed in range(4):
        assert pull(method, of(0.5), seed).abs().max() < 1e-10


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("mean", [0.3, 0.8])
def test_elsewhere_it_descends_towards_the_teachers(method: Method, mean: float) -> None:
    g = torch.stack([pull(method, of(mean), seed)[0] for seed in range(4)]).mean()
    assert g * (mean - 0.5) > 1e-3


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_critic_learns_without_a_graph_of_the_student(method: Method) -> None:
    nets: Any = {"student": of(0.4), "critic": of(0.9)}
    ((_, objective),) = method.updates[1].terms
    objective(nets, batch(), Rng.seeded(0), Shared()).value.backward()
    assert nets["student"].mean.grad is None and float(nets["critic"].mean.grad) > 0


# ---------------------------------------------------------------------------- causal students


@pytest.mark.parametrize(
    "method",
    [
        self_forcing.self_forcing(w=2.0),
        self_forcing.self_forcing(w=2.0, replay=True),
        self_forcing.ode_init(steps=2, w=2.0),
        causvid.causvid(w=2.0),
        causvid.ode_init(steps=2, w=2.0),
    ],
)
def test_a_student_in_chunks_is_trained(method: Method) -> None:
    spec = Toy(causal=True)
    nets = dict(spec.build(frozenset[Role]({"student", "critic"}), device=torch.device("cpu"), dtype=torch.float32))
    whole = frozenset[Role]({"teacher"})
    nets |= Toy(causal=False).build(whole, device=torch.device("cpu"), dtype=torch.float32)
    x, cond = spec.example(4)
    data = Batch(x, cond, {"text": torch.zeros(1, 3)})
    for update in method.updates:
        for _, objective in update.terms:
            value = objective(nets, data, Rng.seeded(0), Shared()).value
            value.backward()
            assert value.isfinite()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in nets["student"].trained().values())
    assert nets["student"].chunks(x.shape[1]) == (CHUNK, CHUNK)


# ---------------------------------------------------------------------------- the published numbers


def test_self_forcing_is_the_published_one() -> None:
    """Steps 1000, 750, 500, 250 under shift 5; w = 4 is the reference's 3.0; t uniform, shifted, in [0.02, 0.98]."""
    assert step_list(4, 5.0) == pytest.approx((1.0, 0.9375, 0.83333, 0.625), abs=1e-5)
    rollout, times = ConsistencySimulation(step_list(4, 5.0)), Diagonal(Uniform(), 5.0, 0.02, 0.98)  # type: ignore[arg-type]
    assert self_forcing.self_forcing().updates == (
        Update("student", ((0.5, DistributionMatching(rollout, times, 4.0, 0.0)),), every=5),
        Update("critic", ((1.0, CriticMatching(rollout, times)),), every=1),
    )
    assert self_forcing.OPTIMIZER["student"] == AdamW(2e-6, (0.0, 0.999), weight_decay=0.01, clip=10.0)
    assert self_forcing.OPTIMIZER["critic"] == AdamW(4e-7, (0.0, 0.999), weight_decay=0.01, clip=10.0)
    ((_, regression),) = self_forcing.ode_init().updates[0].terms
    assert (regression.steps, regression.shift) == (50, 5.0)  # type: ignore[attr-defined]
    assert regression.times == step_list(4, 5.0)  # type: ignore[attr-defined]


def test_causvid_is_the_published_one() -> None:
    """Steps 1000, 757, 522 and none at 0; w = 4.5 is the reference's 3.5; t under shift 8."""
    times, law = (1.0, 0.757, 0.522), Diagonal(Uniform(), 8.0, 0.02, 0.98)
    (student, critic) = causvid.causvid().updates
    assert (student.every, critic.every, critic.skip) == (5, 1, None)
    assert student.terms == ((0.5, OnNoisedData(DistributionMatching(times=law, w=4.5, floor=0.0), times)),)
    assert critic.terms == ((1.0, OnNoisedData(CriticMatching(times=law), times)),)
    assert causvid.OPTIMIZER["student"] == AdamW(2e-6, (0.9, 0.999))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrajectoryRegression(times=(0.5, 0.5)),
        lambda: TrajectoryRegression(times=()),
        lambda: causvid.causvid(times=(1.0, 0.0)),
        lambda: causvid.causvid(times=(1.5, 0.5)),
    ],
)
def test_a_wrong_list_of_times_is_named(make: Any) -> None:
    with pytest.raises(ValueError, match=r"times = .*: must decrease strictly, from 1 at most to above 0"):
        make()
