"""The two sides of a GAN against closed forms: D(z) = w · z, so D's gradient in z is w and its R1 is |w|²."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_consistency import adversarial
from flowmap_consistency.adversarial import Adversarial, Discrimination, Made, OneRollout
from flowmap_consistency.apt import ONE_STEP
from torch import Tensor
from torch.nn import functional as F

from flowmap import Batch, Rng
from flowmap._types import Role, Shared
from flowmap.objectives import Loss
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.rollout import ConsistencySimulation, FlowMapBackwardSimulation
from flowmap.testing import GaussianFlowMap
from flowmap.times import Diagonal
from tests.consistency.judges import Flat, Linear, linear

N, D = 64, 3
W = torch.tensor([0.6, -0.3, 1.1])
X = Rng.seeded(7).noise_like(torch.zeros(N, D))  # the student's
DATA = Batch(Rng.seeded(8).noise_like(X) + 0.5, {}, {})
AT_HALF = Diagonal(low=0.4999999, high=0.5)


def nets(weight: Tensor = W) -> Any:
    return {"student": GaussianFlowMap(), "critic": linear(weight.clone())}


def fooled(x: Tensor, objective: Any = None, seed: int = 0) -> tuple[Loss, Tensor]:
    """The student's loss, and its gradient in x."""
    x = x.detach().requires_grad_()
    made = evolve(objective or Adversarial(noised=False), rollout=Made(x))
    loss = made(nets(), DATA, Rng.seeded(seed), Shared())
    (g,) = torch.autograd.grad(loss.value, x)
    return loss, g


def told(objective: Any, weight: Tensor = W, seed: int = 0) -> tuple[Loss, Tensor]:
    """The critic's loss, and its gradient in w."""
    both = nets(weight)
    made = evolve(objective, rollout=Made(X))
    loss = made(both, DATA, Rng.seeded(seed), Shared())
    (g,) = torch.autograd.grad(loss.value, both["critic"].head.weight)
    return loss, g


# ---------------------------------------------------------------------- closed forms, which defects break


def the_students_gradient_is_the_papers(make: Callable[[], Any]) -> None:
    """L = mean softplus(-w·x), ∂L/∂x = -sigmoid(-w·x) w / N: along +w, so that logits rise."""
    loss, g = fooled(X, make())
    torch.testing.assert_close(loss.value.detach(), F.softplus(-X @ W).mean())
    torch.testing.assert_close(g, -torch.sigmoid(-X @ W)[:, None] * W / N)
    assert bool((g @ W < 0).all())


def the_critics_gradient_is_the_papers(make: Callable[[], Any]) -> None:
    """L = mean softplus(-w·x_data) + softplus(w·x), ∂L/∂w = mean(sigmoid(w·x) x - sigmoid(-w·x_data) x_data)."""
    loss, g = told(make())
    real, fake = DATA.x @ W, X @ W
    torch.testing.assert_close(loss.value.detach(), (F.softplus(-real) + F.softplus(fake)).mean())
    torch.testing.assert_close(g, (torch.sigmoid(fake) @ X - torch.sigmoid(-real) @ DATA.x) / N)


def neither_side_leaves_a_gradient_with_the_other(make: Callable[[], Any], tell: Callable[[], Any]) -> None:
    both = nets()
    student, judge = both["student"], both["critic"]
    evolve(make(), rollout=ONE_STEP)(both, DATA, Rng.seeded(0), Shared()).value.backward()
    assert all(p.grad is None for p in judge.parameters())
    assert all(p.grad is not None for p in (student.mean, student.std)) and student.mean.grad.any()
    student.zero_grad()
    evolve(tell(), rollout=ONE_STEP)(both, DATA, Rng.seeded(0), Shared()).value.backward()
    assert all(p.grad is None for p in student.parameters())
    assert judge.head.weight.grad.any()


def plain() -> Adversarial:
    return Adversarial(noised=False)


def critic() -> Discrimination:
    return Discrimination(noised=False)


def test_the_student_raises_the_logits_of_its_samples() -> None:
    the_students_gradient_is_the_papers(plain)


def test_the_critic_tells_data_from_samples() -> None:
    the_critics_gradient_is_the_papers(critic)


def test_the_students_loss_leaves_the_critic_alone_and_the_other_way_round() -> None:
    neither_side_leaves_a_gradient_with_the_other(plain, critic)
    neither_side_leaves_a_gradient_with_the_other(Adversarial, Discrimination)


@frozen
class Attached(Adversarial):
    """Differentiates through the critic where it should take ∂L/∂x."""

    def __call__(self, nets: Any, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        x = self.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng)
        t, _ = self.times(len(x), rng, x)
        return Loss(F.softplus(-nets["critic"].logits(x, t, batch.cond)).mean())


@frozen
class WithGraph(Discrimination):
    """Lets the critic's loss into the student."""

    def __call__(self, nets: Any, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        x = self.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng)
        t, _ = self.times(len(x), rng, x)
        judge = nets["critic"].logits
        return Loss((F.softplus(judge(x, t, batch.cond)) + F.softplus(-judge(batch.x, t, batch.cond))).mean())


def test_these_tests_see_a_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flipped:
        softplus = staticmethod(lambda logits: F.softplus(-logits))

    monkeypatch.setattr(adversarial, "F", Flipped)
    with pytest.raises(AssertionError):
        the_students_gradient_is_the_papers(plain)
    with pytest.raises(AssertionError):
        the_critics_gradient_is_the_papers(critic)


def test_these_tests_see_a_forgotten_detach() -> None:
    the_students_gradient_is_the_papers(lambda: Attached(noised=False))  # the value alone does not tell
    the_critics_gradient_is_the_papers(lambda: WithGraph(noised=False))
    with pytest.raises(AssertionError):
        neither_side_leaves_a_gradient_with_the_other(lambda: Attached(noised=False), critic)
    with pytest.raises(AssertionError):
        neither_side_leaves_a_gradient_with_the_other(plain, lambda: WithGraph(noised=False))


# ---------------------------------------------------------------------- approximate R1


def r1_of(weight: Tensor, sigma: float, seed: int = 0) -> float:
    loss, _ = told(Discrimination(noised=False, r1=1.0, sigma=sigma), weight, seed)
    return float(loss.logs["gan/r1"].value)


def test_the_approximate_r1_of_a_linear_judge_is_sigma_squared_times_its_gradients_square() -> None:
    """E |D(x) - D(x + σ n)|² = σ² |w|², whose estimate over N has the relative standard error (2 / N)^½."""
    runs, sigma = 40, 0.1
    found = sum(r1_of(W, sigma, seed) for seed in range(runs)) / runs
    exact = sigma**2 * float(W @ W)
    assert abs(found / exact - 1) < 4 * (2 / (N * runs)) ** 0.5


def test_it_grows_with_the_square_of_the_weight_and_of_sigma_and_is_added_times_lambda() -> None:
    assert r1_of(2 * W, 0.1) == pytest.approx(4 * r1_of(W, 0.1))
    assert r1_of(W, 0.2) == pytest.approx(4 * r1_of(W, 0.1), rel=1e-4)
    without, with_ = (float(told(Discrimination(noised=False, r1=r1))[0].value.detach()) for r1 in (0.0, 100.0))
    assert with_ - without == pytest.approx(100 * r1_of(W, 0.1), rel=1e-4)


def test_it_is_of_data_alone_and_pulls_the_weight_down() -> None:
    """Its gradient is 2 λ mean((σ n·w) σ n), along w on average; samples have no part in it."""
    runs = 40
    change = torch.stack(
        [
            told(Discrimination(noised=False, r1=100.0), seed=s)[1] - told(Discrimination(noised=False), seed=s)[1]
            for s in range(runs)
        ]
    ).mean(0)
    torch.testing.assert_close(change, 2 * 100 * 0.1**2 * W, rtol=0.15, atol=0.08)


def test_without_lambda_there_is_no_third_call() -> None:
    assert "gan/r1" not in told(Discrimination(noised=False))[0].logs


# ---------------------------------------------------------------------- what the critic is shown


class Sees(Linear):
    def forward(self, tokens: Any) -> Tensor:
        self.seen = tokens[0][:, 0].detach()
        return super().forward(tokens)


def seen(objective: Any) -> Tensor:
    both = nets()
    both["critic"].head = Sees(W.clone())
    x = X.clone().requires_grad_()
    evolve(objective, rollout=Made(x))(both, DATA, Rng.seeded(0), Shared())
    return both["critic"].head.seen


def test_clean_samples_are_shown_as_they_are_and_data_beside_them() -> None:
    assert torch.equal(seen(plain()), X)
    assert torch.equal(seen(critic()), torch.cat([DATA.x, X]))
    real, fake, near = seen(Discrimination(noised=False, r1=1.0, sigma=0.1)).chunk(3)
    assert torch.equal(real, DATA.x) and torch.equal(fake, X)
    assert 0.05 < float((near - real).std()) < 0.15


def test_noised_ones_are_on_the_path_at_a_time_of_their_own() -> None:
    """At t = ½: half the sample, half of a standard normal; at t = 0 the sample."""
    noise = 2 * seen(Adversarial(times=AT_HALF)) - X
    assert abs(float(noise.mean())) < 0.3 and 0.85 < float(noise.std()) < 1.15
    real, fake = (
        2 * part - x for part, x in zip(seen(Discrimination(times=AT_HALF)).chunk(2), (DATA.x, X), strict=True)
    )
    assert not torch.allclose(real, fake) and 0.85 < float(real.std()) < 1.15


def test_the_gradient_of_a_noised_sample_is_scaled_by_the_path() -> None:
    """y = (1 - t) x + t ε, so that ∂/∂x is half of ∂/∂y."""
    _, g = fooled(X, Adversarial(times=AT_HALF))
    y = seen(Adversarial(times=AT_HALF))
    torch.testing.assert_close(g, -0.5 * torch.sigmoid(-y @ W)[:, None] * W / N, rtol=1e-4, atol=1e-7)


def test_the_time_is_drawn_even_where_nothing_is_noised() -> None:
    times: list[Tensor] = []

    class Listens(Flat):
        def forward(self, z: Tensor, t: Tensor, r: Tensor, cond: Any, cache: Any = None) -> Tensor:
            times.append(t)
            assert torch.equal(t, r)
            return super().forward(z, t, r, cond, cache)

    both = nets()
    both["critic"].u = Listens()
    evolve(critic(), rollout=Made(X))(both, DATA, Rng.seeded(0), Shared())
    real, fake = times[0].chunk(2)
    assert torch.equal(real, fake) and real.unique().numel() > N / 2  # the same for a pair


# ---------------------------------------------------------------------- descending them


def test_alternating_descent_moves_the_students_mean_to_the_datas() -> None:
    """One-step Gaussian student, linear judge: the mean that D cannot tell from the data's is the data's."""
    student, judge = GaussianFlowMap(mean=-0.5, std=1.0), linear(torch.zeros(1))
    both: Any = {"student": student, "critic": judge}
    x = Rng.seeded(3).noise_like(torch.zeros(256, 1)) + 0.5
    fool, tell = Adversarial(ONE_STEP, noised=False), Discrimination(ONE_STEP, noised=False, r1=10.0)
    for step in range(150):
        for objective, p, rate in ((fool, student.mean, 0.1), (tell, judge.head.weight, 1.0)):
            value = objective(both, Batch(x, {}, {}), Rng.seeded(step), Shared()).value
            (g,) = torch.autograd.grad(value, p)
            with torch.no_grad():
                p -= rate * g
    assert abs(float(student.mean.detach()) - float(x.mean())) < 0.15


# ---------------------------------------------------------------------- several on one rollout


def test_one_rollout_is_the_weighted_sum_of_its_terms_on_the_same_samples() -> None:
    x = X.clone().requires_grad_()
    given = Made(x)
    both = nets() | {"teacher": GaussianFlowMap(0.2)}
    dmd, fool = DistributionMatching(given, floor=1.0), Adversarial(given, noised=False)
    apart = [term(both, DATA, Rng.seeded(0).fork(k), Shared()) for k, term in enumerate((dmd, fool))]
    (expected,) = torch.autograd.grad(0.5 * apart[0].value + 0.3 * apart[1].value, x)
    loss = OneRollout(((0.5, dmd), (0.3, fool)))(both, DATA, Rng.seeded(0), Shared())
    (g,) = torch.autograd.grad(loss.value, x)
    torch.testing.assert_close(g, expected)
    assert {*loss.logs} == {*apart[0].logs, *apart[1].logs}


def test_one_rollout_that_ends_above_data_is_its_terms_on_the_noisy_samples() -> None:
    rollout, rng = FlowMapBackwardSimulation((2,), within=(0.3, 1.0)), Rng.seeded(0)
    dmd, both = DistributionMatching(rollout, end=0.3), nets() | {"teacher": GaussianFlowMap(0.2)}
    x = rollout(both["student"], rng.noise_like(X), {}, rng)
    expected = evolve(dmd, rollout=Made(x, rollout.within))(both, DATA, rng.fork(0), Shared()).value
    torch.testing.assert_close(OneRollout(((1.0, dmd),))(both, DATA, Rng.seeded(0), Shared()).value, expected)


@frozen
class Counted:
    """A rollout that says how often it was made, and with which graph."""

    made: list[bool]

    def __call__(self, u: Any, noise: Tensor, cond: Any, rng: Rng) -> Tensor:
        x = ConsistencySimulation((1.0,))(u, noise, cond, rng)  # type: ignore[arg-type]
        self.made.append(x.requires_grad)
        return x


@pytest.mark.parametrize("gradient", [True, False])
def test_one_rollout_is_made_once_with_a_graph_for_the_student_alone(gradient: bool) -> None:
    rollout = Counted([])
    terms: Any = ((1.0, CriticMatching(rollout)), (1.0, Discrimination(rollout, noised=False)))
    if gradient:
        terms = ((1.0, Adversarial(rollout)), (1.0, Adversarial(rollout, noised=False)))
    OneRollout(terms, gradient=gradient)(nets(), DATA, Rng.seeded(0), Shared())
    assert rollout.made == [gradient]


@frozen
class Asks:
    """A term that shares a mean, of `value`."""

    value: float
    rollout: Any = Made(X)
    needs = frozenset[Role]({"student"})

    def __call__(self, nets: Any, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        shared.mean("diagonal", torch.full((1,), self.value), torch.tensor([True]))
        return Loss(torch.zeros(()))


def test_each_term_of_one_rollout_has_means_of_its_own() -> None:
    made, shared = Made(X), Shared()
    OneRollout(((1.0, Asks(1.0, made)), (1.0, Asks(5.0, made))))(nets(), DATA, Rng.seeded(0), shared)
    shared.next()
    assert shared.state() == {"0/diagonal": [1.0, 1.0], "1/diagonal": [5.0, 1.0]}


def test_terms_of_one_rollout_have_one() -> None:
    with pytest.raises(ValueError, match=r"OneRollout.terms: Adversarial\(.* has another rollout than Discrimination"):
        OneRollout(((1.0, Discrimination(ONE_STEP)), (1.0, Adversarial())))
    with pytest.raises(ValueError, match=r"OneRollout.terms: CriticMatching\(rollout=None"):
        OneRollout(((1.0, CriticMatching()),))


def test_it_needs_and_equips_what_its_terms_do() -> None:
    both = OneRollout(((1.0, DistributionMatching(ONE_STEP)), (1.0, Adversarial(ONE_STEP))))
    assert both.needs == {"student", "teacher", "critic"} and both.equips == Adversarial().equips


@pytest.mark.parametrize("field, value", [("r1", -1.0), ("sigma", 0.0)])
def test_a_wrong_value_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"\.{field} = .*: must be"):
        Discrimination(**{field: value})  # type: ignore[arg-type]
