"""Continuous-time consistency rests at the true consistency function, and warms up from the velocity."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from attrs import frozen
from flowmap_consistency import trigflow
from flowmap_consistency.scm import ContinuousConsistency, Prior, scm, training
from torch import Tensor

from flowmap import Batch, FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.derivative import CentralDifference, ForwardMode
from flowmap.method import Update
from flowmap.path import data_from_velocity
from flowmap.reweights import Ramp
from flowmap.testing import GaussianFlowMap, GuidedGaussianFlowMap
from flowmap.times import Diagonal, LogitNormal, TimeSampler

MEAN, STD = 0.5, 0.3
Form = Literal["scm", "rcm"]
FORMS: list[Form] = ["scm", "rcm"]


@frozen
class Wide:
    """The times of another sampler, in float64."""

    times: TimeSampler = Diagonal(LogitNormal(0.7, 1.6))

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        t, r = self.times(n, rng, like)
        return t.double(), r.double()


def data(n: int = 128, elements: int = 1, seed: int = 0) -> Batch:
    x = MEAN + STD * Rng.seeded(7, seed).noise_like(torch.empty(n, elements, dtype=torch.float64))
    return Batch(x, {}, {})


def objective(**options: Any) -> ContinuousConsistency:
    return ContinuousConsistency(**{"times": Wide(), "w": 1.0, "warmup": Ramp(), **options})


def gradient(
    student: FlowMap, matching: ContinuousConsistency, batch: Batch | None = None, seed: int = 0, iteration: int = 0
) -> Tensor:
    nets: Any = {"student": student, "teacher": GaussianFlowMap(MEAN, STD).requires_grad_(False)}
    value = matching(nets, batch or data(), Rng.seeded(seed), Shared(iteration)).value
    return torch.stack(torch.autograd.grad(value, [*student.trained().values()], allow_unused=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reweight", [(), (Prior(),)])
def test_at_the_true_consistency_function_there_is_no_gradient(form: Form, reweight: tuple[Any, ...]) -> None:
    assert gradient(GaussianFlowMap(MEAN, STD), objective(form=form, reweight=reweight)).abs().max() < 1e-9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", [{"scale": 1.1}, {"bias": 0.1}])
def test_at_a_wrong_function_it_pulls_back(form: Form, wrong: dict[str, float]) -> None:
    student = GaussianFlowMap(MEAN, STD, **wrong)
    (name,) = wrong
    assert gradient(student, objective(form=form))[[*student.trained()].index(name)] > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_it_rests_at_the_guided_teachers(form: Form) -> None:
    batch = Batch(torch.zeros(128, 4).double(), {"label": torch.ones(128)}, {"label": torch.zeros(1)})

    def pull(w: float) -> float:
        nets: Any = {"student": GuidedGaussianFlowMap(w=w), "teacher": GuidedGaussianFlowMap(w=1.0)}
        value = objective(form=form, w=3.0)(nets, batch, Rng.seeded(0), Shared()).value
        return float(torch.stack(torch.autograd.grad(value, [*nets["student"].trained().values()])).abs().max())

    assert pull(3.0) < 1e-7
    assert pull(2.0) > 1e-3


def test_with_differences_the_gradient_there_shrinks_with_the_square_of_the_step() -> None:
    pulls = []
    for h in (2e-3, 1e-3):
        matching = objective(times=Wide(Diagonal(low=0.3, high=0.7)), derivative=CentralDifference(h))
        pulls.append(float(gradient(GaussianFlowMap(MEAN, STD), matching).abs().max()))
    assert 3.5 < pulls[0] / pulls[1] < 4.5


def test_training_rests_there_on_average() -> None:
    """Samples of many elements, given whose state g is symmetric about zero: normalising keeps its mean."""
    matching = objective(velocity="data")
    g = torch.stack([gradient(GaussianFlowMap(MEAN, STD), matching, data(64, 64, s), s) for s in range(40)])
    assert (g.mean(0).abs() < 4 * g.std(0) / 40**0.5).all()
    wrong = torch.stack(
        [gradient(GaussianFlowMap(MEAN, STD, bias=0.1), matching, data(64, 64, s), s) for s in range(9)]
    )
    assert wrong.mean(0)[3] > 4 * (wrong.std(0) / 3)[3]


def parts(student: GaussianFlowMap, n: int = 32) -> dict[str, Tensor]:
    """What `tangent` takes, of a wrong student, at random states."""
    t = torch.sigmoid(Rng.seeded(1).noise_like(torch.empty(n, dtype=torch.float64)))
    z, zero = Rng.seeded(2).noise_like(torch.empty(n, 1, dtype=torch.float64)), torch.zeros_like(t)
    c, s = trigflow.cos_sin(t, z)
    x, v, u = (c + s) * z, GaussianFlowMap(MEAN, STD).velocity(z, t, {}), student(z, t, zero, {})
    dx = trigflow.velocity(x, v, c, s)
    dF = trigflow.derivative(x, dx, u, ForwardMode()(student, z, t, zero, v, {}), c, s)
    return {"x": x, "F": trigflow.velocity(x, u, c, s), "dx": dx, "T": c * s * dF, "c": c, "s": s}


@pytest.mark.parametrize("form", FORMS)
def test_the_tangent_is_c_times_the_derivative_of_the_consistency_function(form: Form) -> None:
    """By brute force: f along the teacher's trajectory, differentiated in θ."""
    student, true = GaussianFlowMap(MEAN, STD, scale=1.2, bias=0.1).double(), GaussianFlowMap(MEAN, STD).double()
    found = parts(student)
    c, s, x = found["c"], found["s"], found["x"]
    start = (s / (c + s))[:, 0]

    def f(θ: Tensor) -> Tensor:
        """At the angle θ of the trajectory through x."""
        t = trigflow.time(θ)
        z = true.jump(x / (c + s), start, t, {})
        return data_from_velocity(z, student(z, t, torch.zeros_like(t), {}), t)

    _, df = torch.func.jvp(f, (trigflow.angle(start),), (torch.ones_like(start),))
    g = objective(form=form).tangent(**found, ρ=1.0)
    torch.testing.assert_close(g, c * df, atol=1e-9, rtol=1e-9)


def test_the_warm_up_starts_from_the_velocity_with_neither_term_that_ρ_multiplies() -> None:
    found = parts(GaussianFlowMap(MEAN, STD, scale=1.2, bias=0.1).double())
    c, away = found["c"], found["F"] - found["dx"]
    torch.testing.assert_close(objective(form="scm").tangent(**found, ρ=0.0), -(c**2) * away)
    torch.testing.assert_close(objective(form="rcm").tangent(**found, ρ=0.0), -c * away)


@pytest.mark.parametrize("form", FORMS)
def test_in_between_ρ_multiplies_both_terms(form: Form) -> None:
    found = parts(GaussianFlowMap(MEAN, STD, scale=1.2, bias=0.1).double())
    c, s, ρ = found["c"], found["s"], 0.4
    g = objective(form=form).tangent(**found, ρ=ρ)
    a = c**2 if form == "scm" else c * (1 - ρ**2 * s**2).sqrt()
    torch.testing.assert_close(g + a * (found["F"] - found["dx"]), -ρ * (c * s * found["x"] + found["T"]))


class Velocity(GaussianFlowMap):
    """u(z, t, r) = v(z, t), whatever r: a network that knows one time."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z, t, t, cond)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_iteration_rests_at_the_teacher_itself_and_the_last_does_not(form: Form) -> None:
    matching = objective(form=form, warmup=Ramp(100))
    teacher = Velocity(MEAN, STD)
    assert gradient(teacher, matching, iteration=0).abs().max() < 1e-9
    assert gradient(teacher, matching, iteration=1).abs().max() > 1e-4
    assert gradient(GaussianFlowMap(MEAN, STD), matching, iteration=100).abs().max() < 1e-9


def test_the_loss_is_the_mean_square_of_a_normalised_tangent() -> None:
    """‖g‖² / (‖g‖ + 0.1)² / D with the norm over all elements of a sample; logged is the root mean square of g."""
    batch = data(1, 16)
    nets: Any = {"student": GaussianFlowMap(MEAN, STD, bias=0.3), "teacher": GaussianFlowMap(MEAN, STD)}
    loss = objective()(nets, batch, Rng.seeded(0), Shared())
    size = float(loss.logs["tangent"].value) * 4
    assert float(loss.value.detach()) == pytest.approx((size / (size + 0.1)) ** 2 / 16)


def test_a_sample_whose_tangent_is_not_finite_counts_as_nothing_and_is_counted() -> None:
    batch = data(2)

    def broken(u: Any, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        return torch.where(torch.arange(2)[:, None] == 1, torch.nan, ForwardMode()(u, z, t, r, v, cond))

    student = GaussianFlowMap(MEAN, STD, bias=0.3)
    nets: Any = {"student": student, "teacher": GaussianFlowMap(MEAN, STD)}
    loss = objective(derivative=broken)(nets, batch, Rng.seeded(0), Shared())
    whole = objective()(nets, Batch(batch.x[:1], {}, {}), Rng((0,), (0,), 2), Shared())
    torch.testing.assert_close(loss.value, whole.value / 2)
    shares = {name: float(mean.value) for name, mean in loss.nonfinite.items()}
    assert shares == {"data": 0.0, "teacher": 0.0, "student": 0.5}
    assert loss.logs["tangent"].value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.value, [student.scale, student.bias]))


def test_pure_noise_in_float32_is_finite() -> None:
    at_one = Diagonal(low=1.0 - 1e-7, high=1.0)
    for form in FORMS:
        value = gradient(GaussianFlowMap(MEAN, STD, bias=0.3).float(), objective(times=at_one, form=form))
        assert value.isfinite().all()


def test_the_presets_are_the_published_ones() -> None:
    expected = ContinuousConsistency(
        Diagonal(LogitNormal(math.log(2) - 1.0, 1.4)), ForwardMode(), "teacher", 3.0, Ramp(10_000), "scm", ()
    )
    assert scm().updates == (Update("student", ((1.0, expected),)),)
    ((_, sct),) = training().updates[0].terms
    assert (sct.velocity, sct.needs) == ("data", {"student"})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ContinuousConsistency(velocity="data"), r"w = 3.0 with velocity = 'data'"),
        (lambda: ContinuousConsistency(form="sct"), r".form = .*: must be '"),  # type: ignore[arg-type]
        (lambda: ContinuousConsistency(w=0.0), r".w = .*: must be .*>= 1"),
    ],
)
def test_a_wrong_value_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
