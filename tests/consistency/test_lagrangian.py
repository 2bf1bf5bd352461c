"""The Lagrangian identity comes to rest at the true flow map, with either velocity, and nowhere near."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowmap_consistency.lagrangian import LagrangianMatching
from torch import Tensor

from flowmap import Batch, Rng
from flowmap._types import Shared, Time
from flowmap.derivative import EndDifference, EndForwardMode
from flowmap.guidance import Exact
from flowmap.reweights import Adaptive, Normalised
from flowmap.testing import CountingFlowMap, GaussianFlowMap, GuidedGaussianFlowMap
from flowmap.times import Gap, LogitNormal, TimeSampler, Triangle
from tests.consistency.oracle import Bent, pull
from tests.objectives.test_flow_map_matching import MEAN, STD, Spy, Wide, data, told
from tests.toys import Toy

TIMES = [Triangle(0.0, 0.0), Triangle(0.0, 1.0), Triangle(0.0, 0.0, 5.0), Gap(), Gap(end=LogitNormal(-0.4))]
FORMS: list[dict[str, Any]] = [
    {"velocity": velocity, "through": through} for velocity in ("student", "teacher") for through in (True, False)
]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reweight", [(), (Adaptive(),), (Normalised(),)])
def test_at_the_true_flow_map_there_is_no_gradient(
    times: TimeSampler, form: dict[str, Any], reweight: tuple[Any, ...]
) -> None:
    objective = LagrangianMatching(Wide(times), EndForwardMode(), reweight, **form)
    assert pull(GaussianFlowMap(MEAN, STD), objective).abs().max() < 1e-9


def inside(n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
    """Where no difference is cut off."""
    return 0.7 + 0.2 * rng.uniform(n, like).double(), 0.2 + 0.2 * rng.uniform(n, like).double()


@pytest.mark.parametrize("form", FORMS)
def test_with_differences_the_gradient_there_shrinks_with_the_square_of_the_step(form: dict[str, Any]) -> None:
    pulls = []
    for h in (2e-3, 1e-3):
        objective = LagrangianMatching(inside, EndDifference(h), **form)
        pulls.append(float(pull(GaussianFlowMap(MEAN, STD), objective).abs().max()))
    assert pulls[1] < 1e-4
    assert 3.4 < pulls[0] / pulls[1] < 4.6


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("derivative", [EndForwardMode(), EndDifference()])
@pytest.mark.parametrize("bend", [0.1, -0.1])
def test_a_bend_off_the_diagonal_is_pulled_straight(
    times: TimeSampler, form: dict[str, Any], derivative: Any, bend: float
) -> None:
    objective = LagrangianMatching(Wide(times), derivative, **form)
    assert float(pull(Bent(bend), objective)) / bend > 0.05


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("wrong", [{"scale": 1.1}, {"bias": 0.1}])
def test_the_teachers_velocity_pulls_a_wrong_map_back(through: bool, wrong: dict[str, float]) -> None:
    """Also where the student obeys the identity for a velocity of its own."""
    student = GaussianFlowMap(MEAN, STD, **wrong)
    (name,) = wrong
    objective = LagrangianMatching(Wide(Gap()), velocity="teacher", through=through)
    assert pull(student, objective)[[*student.trained()].index(name)] > 0.01


def residual(student: Bent, x: Tensor, t: Tensor, r: Tensor, z: Tensor) -> Tensor:
    """∂_r Φ - v(Φ, r), by hand: Φ = Φ* - bend (t - r)²."""
    true = student.u
    f = true.jump(z, t, r, {}) - student.bend * (t - r)[:, None] ** 2
    df = true(true.jump(z, t, r, {}), r, r, {}) + 2 * student.bend * (t - r)[:, None]
    return df - true(f, r, r, {})


@pytest.mark.parametrize("through", [True, False])
def test_the_loss_is_the_squared_distance_of_the_two_velocities(through: bool) -> None:
    student, batch, times = Bent(0.3), data(64), Wide(Triangle(0.0, 0.0))
    loss = LagrangianMatching(times, through=through)({"student": student}, batch, Rng.seeded(0), Shared())
    rng = Rng.seeded(0)
    rng.uniform(64, batch.x)  # whose prompts are dropped
    t, r = times(64, rng, batch.x)
    z = (1 - t)[:, None] * batch.x + t[:, None] * rng.noise_like(batch.x)
    torch.testing.assert_close(loss.value, residual(student, batch.x, t, r, z).square().mean())
    torch.testing.assert_close(loss.logs["loss/free"].value, loss.value.detach().float())


def test_gradients_go_through_the_derivative_or_through_u_alone() -> None:
    """Of Φ = Φ* - bend (t - r)²: ∂_r Φ changes with the bend by 2 (t - r), u by t - r."""
    found = []
    for through in (True, False):
        objective = LagrangianMatching(Wide(Triangle(0.0, 0.0)), through=through)
        found.append(float(pull(Bent(0.1), objective)))
    assert found[0] == pytest.approx(2 * found[1])


@pytest.mark.parametrize("form", FORMS)
def test_calls(form: dict[str, Any]) -> None:
    """1 GJ and 1 F, or 1 G, 1 J and 1 F; the F are the teacher's where the velocity is, two with guidance."""
    n = 8
    nets = {role: CountingFlowMap(Spy()) for role in ("student", "teacher")}
    LagrangianMatching(guidance=Exact(3.0, 0.1), **form)(nets, told(n), Rng.seeded(0), Shared())  # type: ignore[arg-type]
    student, teacher = nets["student"], nets["teacher"]
    own = n if form["velocity"] == "student" else 0
    assert (student.graph, student.graph_j) == ((n, n) if form["through"] else (n, 0))
    assert (student.plain, student.plain_j) == ((own, 0) if form["through"] else (n + own, n))
    assert (teacher.graph, teacher.plain) == (0, 0 if own else 2 * n)


def test_differences_ask_twice_and_without_forward_mode() -> None:
    u = CountingFlowMap(Spy())
    LagrangianMatching(derivative=EndDifference())({"student": u}, told(8), Rng.seeded(0), Shared())
    assert (u.graph, u.graph_j, u.plain) == (16, 0, 8)


def test_the_end_is_asked_for_the_velocity_there_with_the_same_history() -> None:
    u, batch = Spy(), told()
    LagrangianMatching(Triangle(0.0, 0.0))({"student": u}, batch, Rng.seeded(0), Shared())
    jump, there = u.calls
    assert jump["grad"] and not there["grad"]
    assert torch.equal(there["t"], there["r"])
    assert torch.equal(there["cond"]["history"], batch.x)
    t, r = jump["t"], there["t"]
    assert (r < t).all()
    torch.testing.assert_close(there["z"], jump["z"] - (t - r)[:, None])  # u = 1 where the text stands


def test_a_guided_teacher_is_asked_with_the_history_in_both_branches() -> None:
    nets, batch = {"student": Spy(), "teacher": Spy()}, told()
    objective = LagrangianMatching(velocity="teacher", guidance=Exact(3.0, 0.5))
    loss = objective(nets, batch, Rng.seeded(0), Shared())  # type: ignore[arg-type]
    (call,) = nets["teacher"].calls
    dropped = nets["student"].calls[0]["cond"]["text"][:, 0] == 0
    assert call["cond"]["text"][:, 0].tolist() == [*(~dropped).float().tolist(), *[0.0] * 8]
    assert torch.equal(call["cond"]["history"], torch.cat([batch.x, batch.x])) and 0 < dropped.sum() < 8
    raw = torch.where(dropped, 0.0, (1 - 3.0) ** 2)  # u = 1, v = 0 + 3 (1 - 0); both are 0 without a prompt
    torch.testing.assert_close(loss.value, raw.mean() / 9)


def guided(label: float, n: int = 256) -> Batch:
    x = 1.0 + 0.5 * Rng.seeded(7).noise_like(torch.empty(n, 4, dtype=torch.float64))
    return Batch(x, {"label": torch.full((n,), label)}, {"label": torch.zeros(1)})


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("through", [True, False])
def test_it_rests_at_the_flow_map_of_the_guided_field(drop: float, through: bool) -> None:
    """The student's own velocity is the guided one, and without a prompt it is not."""
    student = GuidedGaussianFlowMap(w=3.0)
    objective = LagrangianMatching(Wide(Triangle(0.0, 0.0)), guidance=Exact(3.0, drop), through=through)
    assert pull(student, objective, guided(1.0)).abs().max() < 1e-9
    teacher: Any = GuidedGaussianFlowMap(w=1.0).requires_grad_(False)
    taught = LagrangianMatching(
        Wide(Triangle(0.0, 0.0)), velocity="teacher", guidance=Exact(3.0, drop), through=through
    )
    value = taught({"student": student, "teacher": teacher}, guided(1.0), Rng.seeded(0), Shared()).value
    assert max(float(g.abs()) for g in torch.autograd.grad(value, [*student.trained().values()])) < 1e-9


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_has_a_derivative_in_the_end_time_that_can_be_trained(form: dict[str, Any], causal: bool) -> None:
    """Its gradient is that of differences of the gradient."""
    spec = Toy(causal=causal)
    u = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"].double()
    x, c = spec.example(4)
    batch = Batch(x.double(), {name: v.double() for name, v in c.items()}, {})
    found = []
    for derivative in (EndForwardMode(), EndDifference(1e-3)):
        objective = LagrangianMatching(Wide(Triangle(0.0, 0.0)), derivative, **form)
        value = objective({"student": u}, batch, Rng.seeded(0), Shared()).value
        g = torch.autograd.grad(value, [*u.trained().values()], allow_unused=True)
        found.append(torch.cat([part.flatten() for part in g if part is not None]))
    exact, difference = found
    assert exact.norm() > 0.1
    assert (exact - difference).norm() / exact.norm() < 0.02


def test_recomputed_blocks_refuse_forward_mode_and_take_differences() -> None:
    spec = Toy(checkpointing=True)
    u = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    batch = Batch(*spec.example(4), {})
    exact = LagrangianMatching()({"student": u}, batch, Rng.seeded(0), Shared())
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        exact.value.backward()
    LagrangianMatching(derivative=EndDifference())({"student": u}, batch, Rng.seeded(0), Shared()).value.backward()


def test_guidance_without_a_null_condition_is_an_error() -> None:
    batch = Batch(torch.zeros(2, 1), {"text": torch.ones(2, 2)}, {})
    with pytest.raises(ValueError, match="needs a null condition"):
        LagrangianMatching(guidance=Exact(3.0, 0.0))({"student": Spy()}, batch, Rng.seeded(0), Shared())


def test_an_unknown_velocity_is_an_error() -> None:
    with pytest.raises(ValueError, match=r".velocity = .*: must be '"):
        LagrangianMatching(velocity="data")  # type: ignore[arg-type]
