"""DMD is at rest where the student is the teacher, points to the teacher elsewhere, and survives what is not finite."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import Batch, FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Role, Shared, Time
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.path import interpolate
from flowmap.rollout import ConsistencySimulation, FlowMapBackwardSimulation, Rollout
from flowmap.testing import CountingFlowMap, GaussianFlowMap, GuidedGaussianFlowMap, counting
from flowmap.times import Diagonal

N = 128
BATCH = Batch(torch.zeros(N, 16, dtype=torch.float64), {}, {})
ROLLOUTS = [FlowMapBackwardSimulation(), ConsistencySimulation()]


def nets(student: FlowMap, critic: FlowMap, teacher: FlowMap) -> Any:
    return {"student": student, "critic": critic, "teacher": teacher}


def of(mean: float, std: float = 0.5) -> GaussianFlowMap:
    return GaussianFlowMap(mean, std)


def gradient(student: GaussianFlowMap, critic: FlowMap, teacher: FlowMap, objective: DistributionMatching) -> Tensor:
    """[2] in the student's mean and std."""
    value = objective(nets(student, critic, teacher), BATCH, Rng.seeded(0), Shared()).value
    return torch.stack(torch.autograd.grad(value, (student.mean, student.std)))


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_there_is_no_gradient_where_the_student_is_the_teacher(rollout: Rollout) -> None:
    assert gradient(of(0.5), of(0.5), of(0.5), DistributionMatching(rollout)).abs().max() < 1e-12


@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("mean", [0.3, 0.8])
def test_the_mean_descends_towards_the_teachers(rollout: Rollout, mean: float) -> None:
    g, _ = gradient(of(mean), of(mean), of(0.5), DistributionMatching(rollout))
    assert g * (mean - 0.5) > 1e-3


@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("std", [0.3, 0.8])
def test_the_spread_descends_towards_the_teachers(rollout: Rollout, std: float) -> None:
    _, g = gradient(of(0.5, std), of(0.5, std), of(0.5, 0.5), DistributionMatching(rollout))
    assert g * (std - 0.5) > 1e-3


def divergence(student: GaussianFlowMap, teacher: GaussianFlowMap) -> float:
    """KL between the Gaussians."""
    s, t = student.std.detach(), teacher.std.detach()
    return float(torch.log(t / s) + (s**2 + (student.mean.detach() - teacher.mean.detach()) ** 2) / (2 * t**2) - 0.5)


def test_steps_reduce_the_divergence_to_nothing() -> None:
    student, teacher = of(0.9, 0.8), of(0.5, 0.5)
    before = [divergence(student, teacher)]
    for step in range(40):
        critic = copy.deepcopy(student)
        value = DistributionMatching()(nets(student, critic, teacher), BATCH, Rng.seeded(step), Shared()).value
        value.backward()
        with torch.no_grad():
            for p in (student.mean, student.std):
                p -= 0.2 * p.grad
        student.zero_grad()
        before.append(divergence(student, teacher))
    assert before[1] < before[0]
    assert before[-1] < 0.01 * before[0]


class Constant(FlowMap):
    """A velocity field whose data prediction is `value`, whatever the state."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return (z - self.value) / t[:, None].to(z)


def given(x: Tensor) -> Rollout:
    """A rollout that makes x."""
    return lambda u, noise, cond, rng: x


def constants(fake: Tensor, real: Tensor | FlowMap) -> Any:
    return nets(of(0.0), Constant(fake), real if isinstance(real, FlowMap) else Constant(real))


class Exactly(Constant):
    """Predicts it without round-off."""

    def denoise(self, z: Latent, t: Time, cond: Cond, null: Cond | None = None, w: float = 1.0) -> Latent:
        return self.value


def batch(n: int) -> Batch:
    return Batch(torch.zeros(n, 2), {}, {})


def test_the_gradient_is_the_papers_at_the_samples() -> None:
    """2 g / numel, g = (x̂_critic - x̂_teacher) / mean|x - x̂_teacher|: the mean square has no ½."""
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    fake, real = torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    loss = DistributionMatching(given(x))(constants(fake, real), batch(2), Rng.seeded(0), Shared())
    (g,) = torch.autograd.grad(loss.value, x)
    scale = (x - real).abs().mean(1, keepdim=True)
    torch.testing.assert_close(g, 2 * (fake - real) / scale / 4, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.logs["dmd/gradient"].value, ((fake - real) / scale).abs().mean())


def test_the_normaliser_has_a_floor() -> None:
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    real = x.detach() + 1e-5
    for floor, scale in ((1e-3, 1e-3), (0.5, 0.5)):
        loss = DistributionMatching(given(x), floor=floor)(
            constants(real + 1e-4, real), batch(1), Rng.seeded(0), Shared()
        )
        (g,) = torch.autograd.grad(loss.value, x)
        torch.testing.assert_close(g, torch.full((1, 2), 1e-4 / scale), atol=0, rtol=0.05)


def test_a_sample_whose_direction_is_not_finite_counts_as_nothing_and_is_counted() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    real = torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])
    loss = DistributionMatching(given(x))(constants(torch.zeros(2, 2), real), batch(2), Rng.seeded(0), Shared())
    (g,) = torch.autograd.grad(loss.value, x)
    assert loss.value.isfinite() and g[0].any() and not g[1].any()
    shares = {name: float(mean.value) for name, mean in loss.nonfinite.items()}
    assert shares == {"student": 0.0, "teacher": 0.5, "critic": 0.0, "direction": 0.0}


def test_a_normaliser_of_zero_without_a_floor_is_skipped_not_stepped() -> None:
    x = torch.ones(1, 2, requires_grad=True)
    objective = DistributionMatching(given(x), floor=0.0)
    loss = objective(constants(torch.zeros(1, 2), Exactly(x.detach())), batch(1), Rng.seeded(0), Shared())
    (g,) = torch.autograd.grad(loss.value, x)
    assert float(loss.nonfinite["direction"].value) == 1.0
    assert not g.any()


def test_teacher_and_critic_build_no_graph_and_guidance_is_two_calls_of_the_teacher() -> None:
    counted = counting({"student": of(0.4), "critic": of(0.4), "teacher": GuidedGaussianFlowMap(w=1.0)})
    labelled = Batch(BATCH.x, {"label": torch.ones(N)}, {"label": torch.zeros(1)})
    loss = DistributionMatching()(counted, labelled, Rng.seeded(0), Shared())
    loss.value.backward()
    assert (counted["critic"].graph, counted["critic"].plain) == (0, N)
    assert (counted["teacher"].graph, counted["teacher"].plain) == (0, 2 * N)
    assert counted["student"].graph in (2 * N, 3 * N) and counted["student"].plain == 0
    for role in ("critic", "teacher"):
        assert all(p.grad is None for p in counted[role].parameters())


class Seen(GaussianFlowMap):
    """Remembers the times it is asked for."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.t, self.z = t, z
        assert torch.equal(t, r)
        return super().forward(z, t, r, cond)


def test_critic_and_teacher_are_asked_at_the_same_noisy_samples_within_the_times() -> None:
    critic, teacher = Seen(), Seen()
    DistributionMatching()(nets(of(0.5), critic, teacher), BATCH, Rng.seeded(0), Shared())
    assert torch.equal(critic.z, teacher.z) and torch.equal(critic.t, teacher.t)
    assert critic.t.dtype == torch.float32
    assert critic.t.min() >= torch.tensor(0.02) and critic.t.max() <= torch.tensor(0.98)
    assert critic.t.unique().numel() > N / 2


def test_the_critic_learns_from_the_samples_the_student_made() -> None:
    """No call of the student, and its target is the velocity of those samples."""
    counted = counting({"student": of(0.4), "critic": of(0.9), "teacher": of(0.5)})
    shared = Shared()
    DistributionMatching()(counted, BATCH, Rng.seeded(0, 0), shared)
    counted["student"].reset()
    counted["critic"].reset()
    loss = CriticMatching()(counted, BATCH, Rng.seeded(0, 1), shared)
    loss.value.backward()
    assert (counted["student"].graph, counted["student"].plain) == (0, 0)
    assert (counted["critic"].graph, counted["critic"].plain) == (N, 0)
    assert all(p.grad is None for p in counted["student"].parameters())


def shared_pass(nets: Any, batch: Batch, shared: Shared) -> Tensor:
    """The critic's loss of the pass that the student's update makes, after that update's backward pass."""
    DistributionMatching(one_pass=True)(nets, batch, Rng.seeded(0, 0), shared).value.backward()
    loss = CriticMatching(one_pass=True)(nets, batch, Rng.seeded(0, 1), shared)
    loss.value.backward()
    return loss.value


def test_one_pass_of_the_critic_gives_the_fake_score_and_its_own_gradient() -> None:
    one, two = (counting({"student": of(0.4), "critic": of(0.9), "teacher": of(0.5)}) for _ in range(2))
    value = shared_pass(one, BATCH, Shared())
    assert (one["critic"].graph, one["critic"].plain) == (N, 0)
    shared, kept = Shared(), Shared()
    DistributionMatching()(two, BATCH, Rng.seeded(0, 0), shared).value.backward()
    DistributionMatching(one_pass=True)(two, BATCH, Rng.seeded(0, 0), kept)
    x, (t, noise, _) = shared.kept(Rng.seeded(0)), kept.kept_pass(Rng.seeded(0))  # type: ignore[misc]
    assert x is not None
    z, v = interpolate(x, noise, t)
    again = (two["critic"].velocity(z, t, {}) - v).square().flatten(1).mean(1).mean()
    again.backward()
    assert torch.equal(again, value)
    for role in ("student", "critic"):
        for p, q in zip(one[role].parameters(), two[role].parameters(), strict=True):
            assert p.grad is not None and torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_pass_on_a_base_that_the_roles_share(checkpointing: bool) -> None:
    """The student's backward pass, which recomputes its blocks, and a step of it lie in between."""
    spec = evolve(Wan21().tiny(), checkpointing=checkpointing)
    roles = frozenset[Role]({"student", "teacher", "critic"})
    x, text = spec.example(3)
    batch = Batch(x, text, {name: torch.zeros_like(value[:1]) for name, value in text.items()})
    found = []
    for again in (False, True):
        nets = spec.build(roles, device=torch.device("cpu"), dtype=torch.float32)
        for role in ("student", "critic"):
            for n, p in enumerate(nets[role].trained().values()):
                p.data += 0.02 * Rng.seeded(1, n).noise_like(p)
        shared, critic = Shared(), nets["critic"]
        DistributionMatching(one_pass=True)(nets, batch, Rng.seeded(0, 0), shared).value.backward()
        for p in nets["student"].trained().values():
            p.data += 0.1
        if again:
            made = shared.kept_pass(Rng.seeded(0))
            samples = shared.kept(Rng.seeded(0))
            assert made is not None and samples is not None
            z, _ = interpolate(samples, made[1], made[0])
            shared.keep_pass(Rng.seeded(0), *made[:2], critic.velocity(z, made[0], text))
        CriticMatching(one_pass=True)(nets, batch, Rng.seeded(0, 1), shared).value.backward()
        found.append([p.grad for p in critic.trained().values() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0 and any(g.any() for g in found[0])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_one_pass_needs_the_students_update_before_and_one_process() -> None:
    shared, own = Shared(), nets(of(0.4), of(0.9), of(0.5))
    DistributionMatching()(own, BATCH, Rng.seeded(0, 0), shared)
    with pytest.raises(ValueError, match="one_pass = True needs a DistributionMatching with it"):
        CriticMatching(one_pass=True)(own, BATCH, Rng.seeded(0, 1), shared)
    with pytest.raises(ValueError, match=r"CriticMatching.one_pass = True: must be False where it has a rollout"):
        CriticMatching(FlowMapBackwardSimulation(), one_pass=True)
    with pytest.raises(ValueError, match="one_pass = True with a batch in 2 parts"):
        shared_pass(nets(of(0.4), of(0.9), of(0.5)), BATCH, Shared(ranks=2))


def test_the_critic_may_have_a_rollout_of_its_own_which_has_no_graph() -> None:
    counted = counting({"student": of(0.4), "critic": of(0.9)})
    CriticMatching(FlowMapBackwardSimulation((2,)))(counted, BATCH, Rng.seeded(0), Shared()).value.backward()
    assert (counted["student"].graph, counted["student"].plain) == (0, 2 * N)
    assert (counted["critic"].graph, counted["critic"].plain) == (N, 0)


def test_without_samples_the_critic_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"CriticMatching.rollout = None needs the samples of a student update"):
        CriticMatching()(nets(of(0), of(0), of(0)), BATCH, Rng.seeded(0), Shared())


def test_the_critic_is_at_rest_at_the_velocity_of_the_samples() -> None:
    def gradients(critic: GaussianFlowMap) -> Tensor:
        found = []
        for seed in range(30):
            loss = CriticMatching(FlowMapBackwardSimulation())(
                {"student": of(0.4), "critic": critic}, BATCH, Rng.seeded(seed), Shared()
            )
            found.append(torch.stack(torch.autograd.grad(loss.value, (critic.mean, critic.std))))
        g = torch.stack(found)
        return g.mean(0) / (g.std(0) / len(g) ** 0.5)

    assert (gradients(of(0.4)).abs() < 4.5).all()
    assert gradients(of(0.7))[0] > 10


def test_the_critics_loss_can_be_weighed_and_the_raw_one_is_logged() -> None:
    def double(loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        assert torch.equal(t, r)
        return torch.full_like(loss, 2.0)

    found: Any = {}
    for name, reweight in (("plain", ()), ("twice", (double,))):
        objective = CriticMatching(FlowMapBackwardSimulation((2,)), reweight=reweight)
        found[name] = objective({"student": of(0.4), "critic": of(0.9)}, BATCH, Rng.seeded(0), Shared())
    torch.testing.assert_close(found["twice"].value, 2 * found["plain"].value)
    torch.testing.assert_close(found["twice"].logs["loss"].value, found["plain"].logs["loss"].value)


def test_both_losses_say_which_networks_they_need() -> None:
    assert DistributionMatching().needs == {"student", "teacher", "critic"}
    assert CriticMatching().needs == {"student", "critic"}


@pytest.mark.parametrize("field, value", [("w", 0.5), ("floor", -1.0)])
def test_a_wrong_value_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"\.{field} = .*: must be"):
        DistributionMatching(**{field: value})


def test_the_teacher_is_guided_by_w_of_the_standard_scale() -> None:
    """w = 1 asks for one branch only; at w the direction is v_∅ + w (v_c - v_∅)."""
    teacher = CountingFlowMap(GuidedGaussianFlowMap(w=1.0))
    labelled = Batch(torch.zeros(4, 1), {"label": torch.ones(4)}, {"label": torch.zeros(1)})
    x = torch.ones(4, 1, requires_grad=True)
    times = Diagonal(low=0.4999, high=0.5)
    directions = {}
    for w in (1.0, 2.0, 4.0):
        objective = DistributionMatching(given(x), times, w, floor=100.0)  # so that g is the difference / 100
        loss = objective(nets(of(0.0), of(0.0), teacher), labelled, Rng.seeded(0), Shared())
        (directions[w],) = torch.autograd.grad(loss.value, x)
    assert teacher.plain == 4 + 8 + 8
    change = {w: g - directions[1.0] for w, g in directions.items()}
    torch.testing.assert_close(change[4.0], 3 * change[2.0], rtol=1e-3, atol=1e-7)
