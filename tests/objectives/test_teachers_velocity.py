"""The scale of `Balanced` where the velocity is a teacher's, which has no noise: that of the data's, in expectation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import frozen
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import Batch, FlowMap, Rng
from flowmap._types import Role, Shared, Time
from flowmap.derivative import CentralDifference, ForwardMode
from flowmap.guidance import Exact
from flowmap.objectives.flow_map_matching import TIMES, FlowMapMatching
from flowmap.path import interpolate
from flowmap.reweights import Balanced, Beta, expected
from flowmap.testing import GaussianFlowMap
from flowmap.testing.gaussian import GuidedGaussianFlowMap
from flowmap.times import Diagonal, Triangle

MEAN, STD, NULL = 1.0, 0.5, {"label": torch.zeros(1, dtype=torch.float64)}


@frozen
class At:
    """Pairs that are given; float64."""

    t: float
    r: float

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        return torch.full((n,), self.t, dtype=torch.float64), torch.full((n,), self.r, dtype=torch.float64)


def data(n: int) -> Batch:
    x = MEAN + STD * Rng.seeded(7).noise_like(torch.zeros(n, 1, dtype=torch.float64))
    return Batch(x, {"label": torch.ones(n, dtype=torch.float64)}, NULL)


def teacher() -> FlowMap:
    return GuidedGaussianFlowMap(MEAN, STD, w=1.0).requires_grad_(False)


class Noted:
    """A reweight that is 1, and notes what it is told."""

    def __init__(self) -> None:
        self.loss, self.noise = torch.empty(0), torch.empty(0)

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        self.loss, self.noise = loss, noise
        return torch.ones_like(loss)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_on_the_diagonal_the_loss_of_the_data_is_the_teachers_and_the_noise(w: float, t: float) -> None:
    """Of an exact student it is the noise alone: w² c² / D_t², for data N(m, c²)."""
    n, found = 20_000, {}
    for velocity in ("data", "teacher"):
        noted = Noted()
        nets: Any = {"student": GuidedGaussianFlowMap(MEAN, STD, w=w), "teacher": teacher()}
        objective = FlowMapMatching(At(t, t), reweight=(noted,), guidance=Exact(w, 0.0), velocity=velocity)
        objective(nets, data(n), Rng.seeded(0), Shared())
        found[velocity] = noted
    error = 4 * float(found["data"].loss.std()) / n**0.5
    noise = w**2 * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
    assert found["data"].noise.abs().max() == 0 and found["teacher"].loss.max() < 1e-10
    assert abs(float(found["data"].loss.mean()) - noise) < error
    assert abs(float(found["teacher"].noise.mean()) - noise) < error


def test_a_dropped_prompt_is_not_guided_and_neither_is_its_noise() -> None:
    noted, batch, at = Noted(), data(64), At(0.5, 0.5)
    nets: Any = {"student": GuidedGaussianFlowMap(MEAN, STD), "teacher": teacher()}
    FlowMapMatching(at, reweight=(noted,), guidance=Exact(3.0, 1.0), velocity="teacher")(
        nets, batch, Rng.seeded(0), Shared()
    )
    rng = Rng.seeded(0)
    rng.uniform(64, batch.x)  # the drops
    t, _ = at(64, rng, batch.x)
    z, v = interpolate(batch.x, rng.noise_like(batch.x), t)
    v_null = nets["teacher"](z, t, t, {"label": torch.zeros(64)})
    torch.testing.assert_close(noted.noise, (v - v_null).square()[:, 0])


def unguided(*reweight: Any) -> FlowMapMatching:
    return FlowMapMatching(Wide(Triangle(0.5, 0.25)), ForwardMode(), reweight, velocity="teacher")


@frozen
class Wide:
    """The times of another sampler, in float64."""

    times: Any

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        t, r = self.times(n, rng, like)
        return t.double(), r.double()


@pytest.mark.parametrize("by", ["sample", "batch"])
def test_at_the_exact_map_there_is_no_gradient_and_weights_are_finite(by: Any) -> None:
    noted, student, shared = Noted(), GaussianFlowMap(MEAN, STD), Shared()
    nets: Any = {"student": student, "teacher": GaussianFlowMap(MEAN, STD).requires_grad_(False)}
    for seed in range(2):
        objective = unguided(Beta(shift=1.0), Balanced(by=by), noted)
        value = objective(nets, Batch(data(256).x, {}, {}), Rng.seeded(seed), shared).value
        gradient = torch.stack(torch.autograd.grad(value, [*student.trained().values()]))
        assert gradient.abs().max() < 1e-9 and noted.noise.isfinite().all() and float(noted.noise.max()) < 100
        shared.next()


def off_diagonal_gradient(bias: float, by: Any = "sample") -> float:
    """With respect to the bias of a student that is exact but for it."""
    student = GaussianFlowMap(MEAN, STD, bias=bias)
    nets: Any = {"student": student, "teacher": GaussianFlowMap(MEAN, STD).requires_grad_(False)}
    objective = unguided(Beta(shift=1.0), Balanced(by=by))
    value = objective(nets, Batch(data(256).x, {}, {}), Rng.seeded(0), Shared()).value
    return float(torch.autograd.grad(value, student.bias)[0])


@pytest.mark.parametrize("by", ["sample", "batch"])
def test_the_gradient_falls_with_the_error(by: Any) -> None:
    """Linearly: that of μ ∇ log loss would stay, with μ the noise, and fall with its square, with μ the error."""
    large, small = off_diagonal_gradient(1e-2, by), off_diagonal_gradient(1e-3, by)
    assert small == pytest.approx(large / 10, rel=0.01)


SPECS = {"lora": Wan21().tiny(), "full": Wan21(lora=None).tiny()}


@pytest.mark.parametrize("w", [1.0, 3.0])
@pytest.mark.parametrize("kind", [*SPECS])
def test_a_student_that_is_its_teacher_learns_what_is_written_down(kind: str, w: float) -> None:
    """The first step of a lifted network, against the equations written out once more.

    At w = 1 the diagonal has nothing to teach it, and everything comes from the pairs off it.
    """
    spec = SPECS[kind]
    nets = spec.build(frozenset[Role]({"student", "teacher"}), device=torch.device("cpu"), dtype=torch.float32)
    x, cond = spec.example(8)
    null = {name: torch.zeros_like(value[:1]) for name, value in cond.items()}
    times, h = Triangle(0.5, 0.25), CentralDifference(1e-2)
    objective = FlowMapMatching(times, h, (Beta(shift=1.0), Balanced()), Exact(w, 0.0), "teacher")
    student, own = nets["student"], nets["student"].trained()
    loss = objective(nets, Batch(x, cond, null), Rng.seeded(0), Shared()).value
    found = torch.autograd.grad(loss, [*own.values()], allow_unused=True)

    rng = Rng.seeded(0)
    t, r = times(8, rng.fork(TIMES), x)
    rng.uniform(8, x)  # the drops
    z, v = interpolate(x, rng.noise_like(x), t)
    with torch.no_grad():
        none = {name: value.expand_as(cond[name]) for name, value in null.items()}
        v_c, v_null = nets["teacher"](z, t, t, cond), nets["teacher"](z, t, t, none)
        guided = v_null + w * (v_c - v_null)
        y = guided - (t - r).reshape(-1, 1, 1, 1, 1) * h(student, z, t, r, guided, cond)
        n = w**2 * (v - v_c).square().flatten(1).mean(1)
    u = student(z, t, r, cond)
    each, on = (u - y).square().flatten(1).mean(1), t == r
    λ = t * (1 - t).sqrt() / (4 / 15)  # ∫ t sqrt(1 - t) = 4/15
    with torch.no_grad():
        near = torch.stack([n[on & ((10 * t).long() == (10 * s).long())].mean() for s in t])
        n = torch.where(on | ~near.isfinite(), n, near)
        weight = torch.where(on, 1.0, (λ * (each + n))[on].mean() / (λ * (each + n) + 1e-5))
    value = (w**-2 * λ * weight * each).mean()
    right = torch.autograd.grad(value, [*own.values()], allow_unused=True)
    torch.testing.assert_close(loss, value, rtol=1e-4, atol=0)
    norm = 0.0
    for a, b in zip(found, right, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()) + 1e-9)
            norm += float(a.square().sum())
    assert norm > 1e-8
    error = each.detach()
    assert w != 1.0 or float(error[on].max()) < 1e-9 * float(error[~on].max())


def test_the_expected_noise_is_a_mean_of_the_known_in_an_interval_of_times() -> None:
    noise, t = torch.tensor([1.0, 3.0, 100.0, 7.0, 9.0]), torch.tensor([0.11, 0.19, 0.15, 0.45, 0.85])
    known = torch.tensor([True, True, False, True, False])
    shared = Shared()
    found = expected(noise, t, known, shared)
    assert found.tolist() == pytest.approx([1.0, 3.0, 2.0, 7.0, 9.0])  # in the last interval nothing is known
    shared.next()
    later = expected(torch.tensor([6.0, 0.0]), torch.tensor([0.12, 0.13]), torch.tensor([True, False]), shared)
    mean = (0.98 * 4.0 + 6.0) / (0.98 * 2 + 1)
    assert later.tolist() == pytest.approx([6.0, mean])


def test_a_flow_matching_of_the_teacher_is_not_asked_for_noise() -> None:
    shared = Shared()
    nets: Any = {"student": GaussianFlowMap(MEAN, STD), "teacher": GaussianFlowMap(MEAN, STD)}
    FlowMapMatching(Diagonal(), velocity="teacher")(nets, Batch(data(8).x, {}, {}), Rng.seeded(0), shared)
    shared.next()
    assert shared.state() == {}
