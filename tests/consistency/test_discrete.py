"""Discrete consistency rests at the true consistency function, up to the solver's error, and nowhere near."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_consistency.consistency import (
    DiscreteConsistency,
    InverseGap,
    Neighbours,
    PseudoHuber,
    Solver,
    consistency,
    euler,
    heun,
    lcm,
    training,
)
from torch import Tensor

from flowmap import Batch, FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.method import Update
from flowmap.reweights import reweighted
from flowmap.testing import GaussianFlowMap, GuidedGaussianFlowMap
from flowmap.times import euler_grid

MEAN, STD = 0.5, 0.3


@frozen
class Fixed:
    """(t, t') = (t, t - h), in float64."""

    h: float
    t: float = 0.7

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        return torch.full((n,), self.t, dtype=torch.float64), torch.full((n,), self.t - self.h, dtype=torch.float64)


@frozen
class Wide:
    """`Neighbours`, in float64."""

    times: Neighbours = Neighbours()

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        t, r = self.times(n, rng, like)
        return t.double(), r.double()


def data(n: int = 256, seed: int = 0) -> Batch:
    x = MEAN + STD * Rng.seeded(7, seed).noise_like(torch.empty(n, 1, dtype=torch.float64))
    return Batch(x, {}, {})


def true() -> GaussianFlowMap:
    return GaussianFlowMap(MEAN, STD)


def exact(v: Any, z: Latent, t: Time, r: Time) -> Latent:
    """The flow map of the data in place of a solver."""
    return true().jump(z, t, r, {})


def gradient(student: FlowMap, objective: DiscreteConsistency, batch: Batch | None = None, seed: int = 0) -> Tensor:
    nets: Any = {"student": student, "teacher": true().requires_grad_(False)}
    value = objective(nets, batch or data(), Rng.seeded(seed), Shared()).value
    return torch.stack(torch.autograd.grad(value, [*student.trained().values()]))


@pytest.mark.parametrize("reweight", [(), (PseudoHuber(0.1), InverseGap())])
@pytest.mark.parametrize("skip", [1, 7])
def test_at_the_true_consistency_function_there_is_no_gradient(skip: int, reweight: tuple[Any, ...]) -> None:
    objective = DiscreteConsistency(Wide(Neighbours(skip=skip)), solver=exact, w=1.0, reweight=reweight)
    assert gradient(true(), objective).abs().max() < 1e-10


@pytest.mark.parametrize("solver, order", [(euler, 2), (heun, 3)])
def test_the_gradient_there_is_the_solvers_local_error(solver: Solver, order: int) -> None:
    pulls = [
        float(gradient(true(), DiscreteConsistency(Fixed(h), solver=solver, w=1.0)).abs().max()) for h in (0.02, 0.01)
    ]
    assert pulls[1] < 1e-4
    assert pulls[0] / pulls[1] == pytest.approx(2**order, rel=0.06)


@pytest.mark.parametrize("wrong", [{"scale": 1.1}, {"bias": 0.1}])
@pytest.mark.parametrize("solver", [euler, heun, exact])
def test_at_a_wrong_function_it_pulls_back(solver: Solver, wrong: dict[str, float]) -> None:
    """A map of scale · u + bias moves its target too, a little less far: the pull is small, and back."""
    student = GaussianFlowMap(MEAN, STD, **wrong)
    (name,) = wrong
    objective = DiscreteConsistency(Wide(), solver=solver, w=1.0, reweight=(InverseGap(),))
    assert gradient(student, objective)[[*student.trained()].index(name)] > 0.01


def test_it_rests_at_the_guided_teachers() -> None:
    """The flow map of the guided field is its fixed point, that of another w is not."""
    batch = Batch(torch.zeros(256, 4).double(), {"label": torch.ones(256)}, {"label": torch.zeros(1)})

    def pull(w: float) -> float:
        nets: Any = {"student": GuidedGaussianFlowMap(w=w), "teacher": GuidedGaussianFlowMap(w=1.0)}
        value = DiscreteConsistency(Fixed(1e-3), solver=heun, w=3.0)(nets, batch, Rng.seeded(0), Shared()).value
        return float(torch.stack(torch.autograd.grad(value, [*nets["student"].trained().values()])).abs().max())

    assert pull(3.0) < 1e-8
    assert pull(2.0) > 1e-4


def test_training_rests_there_on_average() -> None:
    """The pair of one noise is a step along the sample's velocity, whose mean is the flow's: four standard errors."""
    objective = DiscreteConsistency(Fixed(0.02), "data", w=1.0, reweight=(InverseGap(),))
    g = torch.stack([gradient(true(), objective, data(1024, s), s) for s in range(40)])
    error = g.std(0) / 40**0.5
    bias = 0.02  # of the step's second order, measured below 0.01
    assert (g.mean(0).abs() < 4 * error + bias).all()
    wrong = gradient(GaussianFlowMap(MEAN, STD, bias=0.2), objective, data(4096))
    assert wrong[3] > 5 * bias


class Spy(FlowMap):
    """Zero, and remembers its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.calls: list[tuple[Tensor, Tensor, Tensor, bool]] = []

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.calls.append((z, t, r, torch.is_grad_enabled()))
        return self.weight * z


def test_training_pairs_have_one_noise() -> None:
    u, batch = Spy(), data(8)
    DiscreteConsistency(Fixed(0.2), "data", w=1.0)({"student": u}, batch, Rng.seeded(0), Shared())
    (z, t, end, graph), (z_less, t_less, end_less, graph_less) = u.calls
    noise = (z - 0.3 * batch.x) / 0.7
    torch.testing.assert_close(z_less, 0.5 * batch.x + 0.5 * noise)
    assert (t.unique().item(), t_less.unique().item()) == pytest.approx((0.7, 0.5))
    assert not end.any() and not end_less.any()
    assert graph and not graph_less


def test_the_target_at_the_border_is_the_data() -> None:
    """x̂(z, 0) = z: the last neighbours regress on the teacher's own end."""
    u: Any = Spy()
    loss = DiscreteConsistency(Fixed(0.7), solver=exact, w=1.0)(
        {"student": u, "teacher": true()}, data(), Rng.seeded(0), Shared()
    )
    (z, *_), (end, *_) = u.calls
    torch.testing.assert_close(loss.value, (z - end).square().mean())
    torch.testing.assert_close(end, true().jump(z, torch.full((256,), 0.7).double(), torch.zeros(256).double(), {}))


def test_neighbours_are_on_the_grid_each_equally_often() -> None:
    points = euler_grid(48, 5.0)
    t, r = Neighbours(48, 1, 5.0)(96, Rng.seeded(0), torch.empty(0))
    assert torch.equal(t.sort().values, points[:-1].repeat_interleave(2).sort().values)
    assert torch.equal(r.sort().values, points[1:].repeat_interleave(2).sort().values)
    t, r = Neighbours(1000, 20, 1.0)(981, Rng.seeded(0), torch.empty(0))
    torch.testing.assert_close(t - r, torch.full((981,), 0.02), atol=1e-6, rtol=0)
    assert float(t.max()) == 1.0 and float(r.min()) == 0.0 and len(t.unique()) == 981


def test_a_draw_that_rounds_to_one_is_a_neighbour_too() -> None:
    class Ones(Rng):
        def stratified(self, n: int, like: Tensor) -> Tensor:
            return torch.ones(n)

    t, r = Neighbours(4, 1, 1.0)(2, Ones((0,)), torch.empty(0))
    assert t.tolist() == [0.25, 0.25] and r.tolist() == [0.0, 0.0]


def test_the_losses_are_what_they_say() -> None:
    loss, t, r = torch.tensor([0.0, 4.0], requires_grad=True), torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.0])
    huber = (loss + 1.5**2).sqrt() - 1.5
    for reweight, right in ((PseudoHuber(1.5), huber), (InverseGap(), loss / (t - r))):
        found = torch.autograd.grad(reweighted(loss, t, r, (reweight,), Shared()).sum(), loss)
        torch.testing.assert_close(found, torch.autograd.grad(right.sum(), loss))


def test_the_presets_are_the_published_ones() -> None:
    cd = DiscreteConsistency(Neighbours(48, 1, 5.0), "teacher", euler, 3.0, ())
    assert consistency().updates == (Update("student", ((1.0, cd),)),)
    assert lcm().updates[0].terms[0][1] == evolve(cd, times=Neighbours(1000, 20, 5.0), reweight=(PseudoHuber(1e-3),))
    ((_, ct),) = training().updates[0].terms
    assert (ct.velocity, ct.needs) == ("data", {"student"})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Neighbours(4, 5), r"Neighbours.skip = 5: must be at most grid = 4"),
        (lambda: Neighbours(0), r".grid = .*: must be .*>= 1"),
        (lambda: DiscreteConsistency(velocity="data"), r"w = 3.0 with velocity = 'data': guides a teacher; must be 1"),
        (lambda: DiscreteConsistency(velocity="critic"), r".velocity = .*: must be '"),  # type: ignore[arg-type]
        (lambda: DiscreteConsistency(w=0.5), r".w = .*: must be .*>= 1"),
        (lambda: PseudoHuber(0.0), r".c = .*: must be .*> 0"),
    ],
)
def test_a_wrong_value_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
