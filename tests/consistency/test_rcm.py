"""rCM is consistency and a score regulariser, each at rest where the student is the teacher's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_consistency.rcm import OPTIMIZER, InData, RandomTimesSimulation, rcm, warmup
from flowmap_consistency.scm import ContinuousConsistency
from torch import Tensor

from flowmap import Batch, FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Role, Shared, Time
from flowmap.derivative import ForwardMode
from flowmap.method import Method, Update
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.path import data_from_velocity
from flowmap.reweights import Ramp, reweighted
from flowmap.testing import GaussianFlowMap
from flowmap.times import Diagonal, LogitNormal, Uniform
from tests.consistency.test_scm import Wide

N = 256
BATCH = Batch(0.5 + 0.5 * Rng.seeded(7).noise_like(torch.empty(N, 16, dtype=torch.float64)), {}, {})
ROLLOUT = RandomTimesSimulation(4, Uniform(), 5.0)


def of(mean: float, std: float = 0.5) -> GaussianFlowMap:
    return GaussianFlowMap(mean, std)


def test_the_preset_is_the_published_one() -> None:
    """w = 5; log σ ~ N(0.7, 1.6²); 100 : 1; the student in one of five iterations, the critic in the others."""
    matching = ContinuousConsistency(
        Diagonal(LogitNormal(0.7, 1.6)), ForwardMode(), "teacher", 5.0, Ramp(0, 1.0), "rcm", ()
    )
    regulariser = DistributionMatching(ROLLOUT, Diagonal(Uniform(), 5.0), 5.0, 1e-5)
    critic = CriticMatching(ROLLOUT, Diagonal(Uniform(), 5.0), (InData(),))
    assert rcm().updates == (
        Update("student", ((100.0, matching), (1.0, regulariser)), every=5),
        Update("critic", ((1.0, critic),), skip=5),
    )


def test_the_warm_up_is_consistency_alone() -> None:
    ((weight, matching),) = warmup().updates[0].terms
    assert (weight, matching.warmup, matching.form, matching.w) == (100.0, Ramp(1000), "rcm", 5.0)  # type: ignore[attr-defined]
    assert warmup().needs == {"student", "teacher"}


def test_the_optimisers_are_the_published_ones() -> None:
    rates: dict[Role, float] = {"student": 2e-6, "critic": 4e-7}
    for role, lr in rates.items():
        settings = OPTIMIZER[role]
        assert (settings.lr, settings.betas, settings.weight_decay) == (lr, (0.0, 0.999), 0.01)
        assert (settings.warmup, settings.schedule, settings.clip) == (100, "constant", math.inf)


@pytest.mark.parametrize("every", [5, 10])
def test_student_and_critic_take_turns(every: int) -> None:
    student, critic = rcm(every=every).updates
    assert [student.due(i) for i in range(20)] == [i % every == 0 for i in range(20)]
    assert all(student.due(i) != critic.due(i) for i in range(20))


def test_the_critics_loss_is_that_of_its_data_over_sin_squared() -> None:
    t = torch.linspace(0.05, 1.0, N, dtype=torch.float64)
    z, v, v_hat = (Rng.seeded(k).noise_like(BATCH.x) for k in range(3))
    sin = t / ((1 - t) ** 2 + t**2).sqrt()
    expected = (data_from_velocity(z, v, t) - data_from_velocity(z, v_hat, t)).square().mean(1) / sin**2
    torch.testing.assert_close(reweighted((v - v_hat).square().mean(1), t, t, (InData(),), Shared()), expected)


# ---------------------------------------------------------------------------- the rollout


class Seen(GaussianFlowMap):
    """Remembers what it is asked."""

    def __init__(self, mean: float = 0.5, std: float = 0.5) -> None:
        super().__init__(mean, std)
        self.calls: list[tuple[Tensor, Tensor, Tensor, bool]] = []

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.calls.append((z.detach(), t, r, torch.is_grad_enabled()))
        return super().forward(z, t, r, cond)


def rolled(seed: int, steps: int = 4, n: int = N) -> tuple[Seen, Tensor, Tensor]:
    u, noise = Seen(), Rng.seeded(seed, 1).noise_like(torch.empty(n, 4))
    return u, noise, RandomTimesSimulation(steps)(u, noise, {}, Rng.seeded(seed))


def test_its_steps_are_one_to_four_each_as_often_and_the_last_alone_has_a_gradient() -> None:
    counts = torch.zeros(5)
    for seed in range(400):
        u, _, _ = rolled(seed, n=2)
        counts[len(u.calls)] += 1
        assert [graph for *_, graph in u.calls] == [False] * (len(u.calls) - 1) + [True]
        assert all(not r.any() for _, _, r, _ in u.calls)  # each jump is to data
    assert counts[0] == 0
    assert ((counts[1:] - 100).abs() < 4 * (400 * 0.25 * 0.75) ** 0.5).all()


def test_its_times_fall_from_pure_noise_and_are_each_samples_own() -> None:
    u, noise, _ = next(found for seed in range(40) if len((found := rolled(seed))[0].calls) == 4)
    times = torch.stack([t for _, t, _, _ in u.calls])
    assert (times[0] == 1).all() and torch.equal(u.calls[0][0], noise)
    assert (times.diff(dim=0) < 0).all() and float(times.min()) > 0
    assert all(len(row.unique()) > N / 2 for row in times[1:])
    above = float((times[1:] > 0.8333).float().mean())  # shift(½) at shift 5
    assert abs(above - 0.5) < 4 * (0.25 / (3 * N)) ** 0.5


@pytest.mark.parametrize("seed", range(8))
def test_noised_again_the_state_has_the_marginal_of_its_time(seed: int) -> None:
    """Of the true consistency function, the samples and every state on the way are distributed as the data's."""
    u, _, x = rolled(seed, n=4096)
    for z, t, _, _ in u.calls:
        normal = (z - (1 - t)[:, None] * 0.5) / u.sigma(t).detach().float()[:, None]
        assert abs(float(normal.mean())) < 4 / 128 and abs(float(normal.std()) - 1) < 4 / 128 / 2**0.5
    assert abs(float(x.detach().mean()) - 0.5) < 4 * 0.5 / 128
    assert abs(float(x.detach().std()) - 0.5) < 4 * 0.5 / 128 / 2**0.5


def test_a_part_of_a_batch_rolls_out_as_in_the_whole() -> None:
    u, noise = GaussianFlowMap(), Rng.seeded(3).noise_like(torch.empty(8, 4))
    whole = RandomTimesSimulation()(u, noise, {}, Rng((5,)))
    part = RandomTimesSimulation()(u, noise[[2, 6]], {}, Rng((5,), (2, 6), 8))
    torch.testing.assert_close(part, whole[[2, 6]])


# ---------------------------------------------------------------------------- both terms


def pull(student: FlowMap, method: Method, seed: int = 0) -> Tensor:
    """The gradient of the student's update, critic = student, in its mean and std."""
    nets: Any = {"student": student, "critic": student, "teacher": of(0.5).requires_grad_(False)}
    terms = method.updates[0].terms
    values = [w * o(nets, BATCH, Rng.seeded(seed, i), Shared()).value for i, (w, o) in enumerate(terms)]
    torch.stack(values).sum().backward()
    g = torch.stack([student.mean.grad, student.std.grad])  # type: ignore[arg-type, list-item]
    student.zero_grad()
    return g


def wide(method: Method) -> Method:
    """Its consistency in float64."""
    update = method.updates[0]
    terms = tuple(
        (w, evolve(o, times=Wide(o.times)) if isinstance(o, ContinuousConsistency) else o) for w, o in update.terms
    )
    return evolve(method, updates=(evolve(update, terms=terms), *method.updates[1:]))


def test_where_the_student_is_the_teachers_flow_map_no_term_pulls() -> None:
    method = wide(rcm(w=1.0))
    for seed in range(6):
        assert pull(of(0.5), method, seed).abs().max() < 1e-7


@pytest.mark.parametrize("consistency, dmd", [(100.0, 0.0), (0.0, 1.0), (100.0, 1.0)])
def test_elsewhere_each_descends_towards_it(consistency: float, dmd: float) -> None:
    """At times with a gradient: the consistency of another Gaussian is nearly the same close to data."""
    method = wide(rcm(w=1.0, consistency=consistency, dmd=dmd))
    for mean in (0.3, 0.8):
        assert float(pull(of(mean), method)[0]) * (mean - 0.5) > 1e-3
