"""Phased DMD: the velocity of a sub-interval is the diffusion's; phases end where the next begin."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from flowmap_consistency import phased_dmd as module
from flowmap_consistency.phased_dmd import Above, PhaseCritic, PhaseMatching, Phases, phased_dmd, stages, sub_velocity
from torch import Tensor

from flowmap import Batch, Recipe, Rng, Stage, sample
from flowmap._types import Latent, Shared, Time
from flowmap.method import Update
from flowmap.methods import anyflow
from flowmap.path import interpolate, renoise
from flowmap.rollout import consistency_step, ode_step
from flowmap.testing import CountingFlowMap, GaussianFlowMap
from flowmap.times import Diagonal
from tests.consistency.judges import BATCH, CPU, ROLES, calls, one, toy, trainer
from tests.toys import Toy

MEAN, STD = 0.5, 0.6
PUBLISHED = Phases(((1.0, 0.9375), (0.8333333134651184, 0.625)))
Velocity = Callable[[Latent, Latent, Time, Time], tuple[Latent, Latent, Tensor]]


def of(mean: float = MEAN, std: float = STD) -> GaussianFlowMap:
    return GaussianFlowMap(mean, std)


# ---------------------------------------------------------------------- v_sub


@pytest.mark.parametrize("s, t", [(0.0, 0.3), (0.3, 0.5), (0.5, 0.9), (0.8333, 0.9), (0.8333, 0.99)])
def test_it_is_the_derivative_of_the_path_from_s(s: float, t: float) -> None:
    """Of a x_s + b ε, by central differences in float64."""
    x, noise = (Rng.seeded(k).noise_like(torch.zeros(4, 3, dtype=torch.float64)) for k in (0, 1))
    at, now, h = torch.full((4,), s).double(), torch.full((4,), t).double(), 1e-6
    z, v, b = sub_velocity(x, noise, at, now)
    above, below = (sub_velocity(x, noise, at, now + d)[0] for d in (h, -h))
    torch.testing.assert_close(v, (above - below) / (2 * h), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(z, renoise(x, noise, at, now))
    torch.testing.assert_close(b, (now**2 - ((1 - now) / (1 - at) * at) ** 2).sqrt())


def test_from_data_it_is_the_velocity_of_the_path() -> None:
    x, noise = (Rng.seeded(k).noise_like(torch.zeros(4, 3)) for k in (0, 1))
    zero, t = torch.zeros(4), torch.tensor([0.1, 0.4, 0.7, 1.0])
    z, v = interpolate(x, noise, t)
    found = sub_velocity(x, noise, zero, t)
    torch.testing.assert_close(found[0], z)
    torch.testing.assert_close(found[1], v)
    torch.testing.assert_close(found[2], t)


def the_regression_is_the_marginal_velocity(velocity: Velocity, s: float, t: float) -> None:
    """E[v_sub | x_t] over Gaussian x_s is the flow's v(x_t, t): slope and offset of a regression, four errors."""
    n = 400_000
    x, e0, e = (Rng.seeded(k).noise_like(torch.zeros(n, 1, dtype=torch.float64)) for k in range(3))
    at, now = torch.full((n,), s).double(), torch.full((n,), t).double()
    x_s, _ = interpolate(MEAN + STD * x, e0, at)
    z, v, _ = velocity(x_s, e, at, now)
    exact = of()(z, now, now, {}).detach()
    left, centred = v - exact, z - z.mean()
    error = float(left.std()) / n**0.5
    assert abs(float(left.mean())) < 4 * error
    assert abs(float((left * centred).mean() / centred.std())) < 4 * error


GAPS = [(0.0, 0.5), (0.3, 0.6), (0.5, 0.95), (0.8333, 0.9), (0.8333, 0.97)]


@pytest.mark.parametrize("s, t", GAPS)
def test_its_mean_given_the_state_is_the_marginal_velocity(s: float, t: float) -> None:
    the_regression_is_the_marginal_velocity(sub_velocity, s, t)


def without_slope(x: Latent, noise: Latent, s: Time, t: Time) -> tuple[Latent, Latent, Tensor]:
    """v_sub without b' ε."""
    z, _, b = sub_velocity(x, noise, s, t)
    return z, -x / (1 - s)[:, None], b


def naive(x: Latent, noise: Latent, s: Time, t: Time) -> tuple[Latent, Latent, Tensor]:
    """As if x_s were a clean sample."""
    z, _, b = sub_velocity(x, noise, s, t)
    return z, noise - x, b


def half_slope(x: Latent, noise: Latent, s: Time, t: Time) -> tuple[Latent, Latent, Tensor]:
    """b b' without what a contributes to it."""
    z, _, b = sub_velocity(x, noise, s, t)
    return z, noise * (t / b)[:, None] - x / (1 - s)[:, None], b


DEFECTS = [without_slope, naive, half_slope]


@pytest.mark.parametrize("defect", DEFECTS)
def test_that_test_sees_what_is_missing(defect: Velocity) -> None:
    for s, t in GAPS[1:]:
        with pytest.raises(AssertionError):
            the_regression_is_the_marginal_velocity(defect, s, t)


# ---------------------------------------------------------------------- the critic

N = 512
BATCH_1 = Batch(torch.zeros(N, 4, dtype=torch.float64), {}, {})


def pull(critic: GaussianFlowMap, runs: int = 30) -> Tensor:
    """The mean gradient of the critic's loss in its mean and std, in standard errors."""
    objective = PhaseCritic(PUBLISHED, times=Above(low=0.2))  # nearer s the target's noise drowns everything
    found = []
    for seed in range(runs):
        loss = objective({"student": of(), "critic": critic}, BATCH_1, Rng.seeded(seed), Shared())
        found.append(torch.stack(torch.autograd.grad(loss.value, (critic.mean, critic.std))))
    g = torch.stack(found)
    return g.mean(0) / (g.std(0) / len(g) ** 0.5)


def test_the_critic_is_at_rest_at_the_velocity_of_the_law_it_never_saw_clean() -> None:
    """The student's samples are at s = 0.83; the critic learns of the data that they are noised from."""
    assert (pull(of()).abs() < 4.5).all()
    assert pull(of(MEAN + 0.3))[0] > 6


@pytest.mark.parametrize("defect", DEFECTS)
def test_with_a_wrong_target_it_is_not(defect: Velocity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sub_velocity", defect)
    assert (pull(of()).abs() > 10).any()


def test_the_weight_is_one_over_b_squared_and_at_most_ten() -> None:
    """Of an error that is made to be 1 everywhere."""

    class Off(GaussianFlowMap):
        def forward(self, z: Tensor, t: Tensor, r: Tensor, cond: Any, cache: Any = None) -> Tensor:
            return self.v + 1

    for low, most in ((0.02, 10.0), (0.02, 3.0), (0.9, 10.0)):
        critic, seen = Off(), []

        def keep(x: Latent, noise: Latent, s: Time, t: Time, critic: Any = critic, seen: Any = seen) -> Any:
            z, critic.v, b = sub_velocity(x, noise, s, t)
            seen.append(b)
            return z, critic.v, b

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "sub_velocity", keep)
            objective = PhaseCritic(PUBLISHED, times=Above(low=low), most=most)
            loss = objective({"student": of(), "critic": critic}, BATCH_1, Rng.seeded(0), Shared())
        expected = float((1 / seen[0] ** 2).clamp(0, most).mean())
        assert float(loss.value) == pytest.approx(expected, rel=1e-5)
        assert float(loss.logs["loss"].value) == pytest.approx(1.0)  # what is logged has no weight


# ---------------------------------------------------------------------- the student


def gradient(
    student: GaussianFlowMap, critic: GaussianFlowMap, teacher: GaussianFlowMap, phase: int, seed: int = 0
) -> Tensor:
    """[2] in the student's mean and std."""
    objective = PhaseMatching(PUBLISHED, (phase,), w=1.0, floor=1e-3)
    nets: Any = {"student": student, "critic": critic, "teacher": teacher}
    loss = objective(nets, BATCH_1, Rng.seeded(seed), Shared())
    return torch.stack(torch.autograd.grad(loss.value, (student.mean, student.std)))


@pytest.mark.parametrize("phase", [0, 1])
def test_the_student_descends_towards_the_teacher_in_every_phase(phase: int) -> None:
    assert gradient(of(), of(), of(), phase).abs().max() < 1e-12
    for mean in (MEAN - 0.3, MEAN + 0.3):
        assert gradient(of(mean), of(mean), of(), phase)[0] * (mean - MEAN) > 0
    if phase:  # x_s of the first is mostly noise, whatever the data's std
        for std in (STD - 0.3, STD + 0.3):
            assert gradient(of(std=std), of(std=std), of(), phase)[1] * (std - STD) > 0


@pytest.mark.parametrize("phase", [0, 1])
def test_steps_bring_the_students_mean_to_the_teachers(phase: int) -> None:
    student = of(MEAN + 0.4)
    for seed in range(60):
        g = gradient(student, of(float(student.mean.detach())), of(), phase, seed)
        with torch.no_grad():
            student.mean -= 0.5 * g[0]
    assert abs(float(student.mean.detach()) - MEAN) < 0.1


def test_scores_are_compared_between_s_and_one_and_nothing_but_the_student_gets_a_gradient() -> None:
    class Seen(GaussianFlowMap):
        def forward(self, z: Tensor, t: Tensor, r: Tensor, cond: Any, cache: Any = None) -> Tensor:
            self.t = t
            return super().forward(z, t, r, cond)

    for phase, s in ((0, 0.8333333), (1, 0.0)):
        critic, teacher, student = Seen(), Seen(), of()
        nets: Any = {"student": student, "critic": critic, "teacher": teacher}
        PhaseMatching(PUBLISHED, (phase,), w=1.0)(nets, BATCH_1, Rng.seeded(0), Shared()).value.backward()
        assert torch.equal(critic.t, teacher.t) and critic.t.unique().numel() > N / 2
        assert s + 0.0199 * (1 - s) < critic.t.min() and critic.t.max() < s + 0.9801 * (1 - s)
        assert all(p.grad is None for u in (critic, teacher) for p in u.parameters()) and student.mean.grad is not None
        student.zero_grad()
        PhaseCritic(PUBLISHED, (phase,))(nets, BATCH_1, Rng.seeded(0), Shared()).value.backward()
        assert all(p.grad is None for u in (student, teacher) for p in u.parameters())
        assert critic.mean.grad is not None and s + 0.0199 * (1 - s) < critic.t.min()


def test_times_are_those_of_the_shifted_law_above_s() -> None:
    """Given t > s, and of the law on (0, 1): the same quantiles."""
    like, s = torch.zeros(1), 0.6
    whole, _ = Diagonal(shift=5.0)(40_000, Rng.seeded(0), like)
    found = Above(low=0.0, high=1.0)(40_000, Rng.seeded(1), like, s)
    q = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(found.quantile(q), whole[whole > s].quantile(q), atol=0.01, rtol=0)
    low = Above(low=0.1, high=0.9)(1000, Rng.seeded(1), like, 0.5)
    assert low.min() == pytest.approx(0.55) and low.max() == pytest.approx(0.95)


# ---------------------------------------------------------------------- phases


@pytest.mark.parametrize("phase, s", [(0, 0.8333333), (1, 0.0)])
@pytest.mark.parametrize("j", [0, 1])
def test_a_rollout_of_the_true_flow_map_has_the_law_at_the_end_of_its_phase(
    phase: int, s: float, j: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rng, "randint", lambda self, n: j % n)
    noise = Rng.seeded(0).noise_like(torch.zeros(40_000, 1, dtype=torch.float64))
    x = PUBLISHED.rollout(of(), noise, {}, Rng.seeded(1), phase).detach()
    assert abs(float(x.mean()) - (1 - s) * MEAN) < 0.02
    assert abs(float(x.std()) - float(of().sigma(torch.tensor(s)).detach())) < 0.02


@pytest.mark.parametrize("phase, plain", [(0, (0, 1)), (1, (2, 3))])
def test_one_jump_alone_has_a_gradient(phase: int, plain: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for j in (0, 1):
        monkeypatch.setattr(Rng, "randint", lambda self, n, j=j: j % n)
        u = CountingFlowMap(of())
        PUBLISHED.rollout(u, torch.zeros(3, 1), {}, Rng.seeded(1), phase)
        assert (u.graph, u.plain) == (3, 3 * plain[j])


def test_the_times_of_training_are_the_times_of_sampling() -> None:
    """Every jump that `step` makes on the grid is a jump that some rollout differentiates: from τ to s."""

    class Asked(GaussianFlowMap):
        def forward(self, z: Tensor, t: Tensor, r: Tensor, cond: Any, cache: Any = None) -> Tensor:
            asked.add((float(t[0]), float(r[0]), torch.is_grad_enabled()))
            return super().forward(z, t, r, cond)

    asked: set[tuple[float, float, bool]] = set()
    sample(Asked(), torch.zeros(2, 1), {}, 4, shift=5.0, step=PUBLISHED.step)
    used = {(t, r) for t, r, _ in asked}
    assert used == {(t, s) for phase, s in zip(PUBLISHED.times, PUBLISHED.ends, strict=True) for t in phase}
    asked.clear()
    for phase, seed in [(phase, seed) for phase in (0, 1) for seed in range(12)]:
        PUBLISHED.rollout(Asked(), torch.zeros(2, 1), {}, Rng.seeded(seed), phase)
    assert {(t, r) for t, r, graph in asked if graph} == used


def test_samples_of_the_true_flow_map_are_data() -> None:
    noise = Rng.seeded(0).noise_like(torch.zeros(40_000, 1))
    x = sample(of(), noise, {}, 4, shift=5.0, step=PUBLISHED.step)
    assert abs(float(x.mean()) - MEAN) < 0.02 and abs(float(x.std()) - STD) < 0.02


def test_one_phase_is_the_consistency_sampler() -> None:
    noise = Rng.seeded(0).noise_like(torch.zeros(4, 3))
    whole = Phases(((1.0, 0.9375, 0.8333333134651184, 0.625),))
    ours, theirs = (sample(of(), noise, {}, 4, shift=5.0, step=step) for step in (whole.step, consistency_step))
    torch.testing.assert_close(ours, theirs)


def test_a_grid_that_does_not_stop_where_a_phase_ends_still_ends_in_data() -> None:
    noise = Rng.seeded(0).noise_like(torch.zeros(40_000, 1))
    x = sample(of(), noise, {}, 3, shift=5.0, step=Phases().step)
    assert abs(float(x.mean()) - MEAN) < 0.02 and abs(float(x.std()) - STD) < 0.02


@pytest.mark.parametrize("phase", [0, 1])
def test_chunks_come_after_clean_ones_and_only_their_own_jump_has_a_gradient(
    phase: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history of the second chunk is the first, walked on to data; chunk by chunk, that is the rollout."""
    monkeypatch.setattr(Rng, "randint", lambda self, n: 0)
    u = toy(Toy(causal=True)).build(ROLES, device=CPU, dtype=torch.float32)["student"]
    noise, c, rng = one().x, one().cond, Rng.seeded(5)
    x = PUBLISHED.rollout(u, noise, c, rng, phase)
    s = torch.full((2,), PUBLISHED.ends[phase])

    def down(z: Latent, cache: Any, levels: list[float], own: Rng) -> Latent:
        for t, r in pairwise(levels):
            z = PUBLISHED.step(u, z, torch.full((2,), t), torch.full((2,), r), c, cache, own)
        return z

    start = [1.0, 0.9375, 0.8333333134651184][: 1 + 2 * phase]
    rest = [0.8333333134651184, 0.625, 0.0] if phase == 0 else [0.0]
    own = rng.fork(0)
    first = down(noise[:, :2], None, [*start, float(s[0])], own)
    cache = u.extend(None, down(first, None, rest, own).detach(), c)
    second = down(noise[:, 2:], cache, [*start, float(s[0])], rng.fork(1))
    torch.testing.assert_close(x, torch.cat([first, second], 1))
    g_first, g_second = (
        torch.autograd.grad(part.sum(), u.net.out.weight, retain_graph=True)[0]  # type: ignore[union-attr]
        for part in (x[:, :2], x[:, 2:])
    )
    assert bool(g_first.any()) and bool(g_second.any())


@pytest.mark.parametrize(
    "times", [(), ((),), ((0.9, 0.5),), ((1.0, 0.5), (0.5, 0.2)), ((1.0, 0.5), (0.2, 0.0)), ((1.0,), (), (0.5,))]
)
def test_phases_that_make_no_sense(times: Any) -> None:
    with pytest.raises(ValueError, match=r"Phases.times = .*: must decrease strictly from 1.0 and stay above 0"):
        Phases(times)


@pytest.mark.parametrize("kind", [PhaseMatching, PhaseCritic])
@pytest.mark.parametrize("train", [(), (2,), (-1,)])
def test_phases_that_are_not_there(kind: Any, train: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}.train = .*: must name phases, of 0 to 1"):
        kind(PUBLISHED, train)


# ---------------------------------------------------------------------- the method


def test_it_is_the_published_one() -> None:
    """Two phases of two steps, w = 4 (a choice), 5 : 1, weights clamped at 10."""
    student, critic = phased_dmd().updates
    matching = PhaseMatching(PUBLISHED, (0,), Above(shift=5.0), w=4.0, floor=0.0)
    assert student == Update("student", ((0.5, matching),), every=5)
    assert critic == Update("critic", ((1.0, PhaseCritic(PUBLISHED, (0,), Above(shift=5.0), most=10.0)),))
    assert PUBLISHED.ends == (0.8333333134651184, 0.0)
    assert phased_dmd().needs == {"student", "teacher", "critic"} and not phased_dmd().equips


@pytest.mark.parametrize("train, before", [((0,), 0), ((1,), 2)])
@pytest.mark.parametrize("micro", [None, 3])
def test_it_costs_what_the_table_says(
    train: tuple[int, ...], before: int, micro: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 G + 0.5 F and 5 · 1.5 F, by enumeration; a later phase has the two steps of the one before, too, 6 times."""
    found = []
    for j in (0, 1):
        monkeypatch.setattr(Rng, "randint", lambda self, n, j=j: j % n)
        found.append(calls(phased_dmd(train=train), iterations=5, micro=micro))
    plain = [made["student"][1] for made in found]
    assert sum(plain) / 2 == 0.5 + 5 * 1.5 + 6 * before
    for made in found:
        assert made["student"][0] == 1 and made["teacher"] == (0, 2) and made["critic"] == (5, 1)


@pytest.mark.parametrize("spec", [Toy(), Toy(causal=True), Toy(shared=True, checkpointing=True)])
@pytest.mark.parametrize("train", [(0,), (0, 1)])
def test_it_trains_students_of_every_kind(spec: Toy, train: tuple[int, ...]) -> None:
    loop, nets = trainer(phased_dmd(train=train, every=1), spec)
    for iteration in range(4):
        logs = loop.step(iteration)
        assert all(mean.value.isfinite() for mean in logs.values())
        assert float(logs["critic/gradient_norm"].value) > 0 and float(logs["student/gradient_norm"].value) > 0
    assert nets["student"].graph == 4 * BATCH * (2 if spec.causal else 1)


def test_a_phase_of_several_is_drawn_each_time() -> None:
    loop, nets = trainer(phased_dmd(train=(0, 1), every=1, number=2))
    seen = set()
    for iteration in range(12):
        for u in nets.values():
            u.reset()
        loop.step(iteration)
        seen.add(nets["student"].plain // BATCH)
    assert seen == {1, 2, 3}  # the critic's rollout has a call; each of both, one more where it is in the second phase


@pytest.mark.parametrize("options", [{"number": 3}, {"phases": 0}, {"phases": 5}])
def test_steps_that_do_not_divide(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="phases must be at least 1 and divide number"):
        phased_dmd(**options)  # type: ignore[arg-type]


def test_with_one_step_a_phase_it_is_sampled_along_the_flow() -> None:
    noise, single = (
        Rng.seeded(0).noise_like(torch.zeros(4, 3)),
        Phases(((1.0,), (0.9375,), (0.8333333134651184,), (0.625,))),
    )
    ours, theirs = (sample(of(), noise, {}, 4, shift=5.0, step=step) for step in (single.step, ode_step))
    assert torch.equal(ours, theirs)
    assert phased_dmd(phases=4).updates[0].terms[0][1].phases == single  # type: ignore[attr-defined]


def test_at_a_recipes_scale_phases_are_added_one_by_one() -> None:
    recipe = Recipe(toy(), (Stage(anyflow.forward(), 100), Stage(anyflow.on_policy(guidance=2.0), 40, batch=8)))
    found = stages(recipe)
    assert [(stage.steps, stage.batch) for stage in found] == [(50, 8)] * 4
    for k, stage in enumerate(found):
        assert stage.method == phased_dmd(train=(*range(k + 1),), phases=4, shift=1.0, w=2.0)
        assert stage.method.sampler == "flow_map" and stage.method.guidance == 2.0
