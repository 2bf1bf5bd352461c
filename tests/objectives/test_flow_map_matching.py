"""Flow-map matching comes to rest at the true flow map, whatever the times, and nowhere near."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from attrs import frozen
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import Batch, FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.derivative import CentralDifference, Derivative, ForwardMode, Predicted
from flowmap.guidance import Exact, Fused
from flowmap.objectives.flow_map_matching import TIMES as OF_PAIRS
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.path import interpolate
from flowmap.reweights import Adaptive, Balanced, Beta, Ramp
from flowmap.testing import CountingFlowMap, GaussianFlowMap
from flowmap.times import Diagonal, TimeSampler, Triangle
from tests.toys import Toy

MEAN, STD = 0.5, 0.3


@frozen
class Wide:
    """The times of another sampler, in float64."""

    times: TimeSampler

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        t, r = self.times(n, rng, like)
        return t.double(), r.double()


def data(n: int = 256, seed: int = 0) -> Batch:
    x = MEAN + STD * Rng.seeded(7, seed).noise_like(torch.zeros(n, 1, dtype=torch.float64))
    return Batch(x, {}, {})


def gradient(student: FlowMap, objective: FlowMapMatching, batch: Batch | None = None, seed: int = 0) -> Tensor:
    nets: Any = {"student": student, "teacher": GaussianFlowMap(MEAN, STD).requires_grad_(False)}
    value = objective(nets, batch or data(), Rng.seeded(seed), Shared()).value
    return torch.stack(torch.autograd.grad(value, [*student.trained().values()]))


TIMES = [Diagonal(), Triangle(0.0, 1.0), Triangle(0.0, 0.0), Triangle(0.5, 0.25, 5.0)]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("reweight", [(), (Beta(), Balanced()), (Adaptive(),)])
def test_at_the_true_flow_map_there_is_no_gradient(times: TimeSampler, reweight: tuple[Any, ...]) -> None:
    objective = FlowMapMatching(Wide(times), ForwardMode(), reweight, velocity="teacher")
    assert gradient(GaussianFlowMap(MEAN, STD), objective).abs().max() < 1e-9


@pytest.mark.parametrize("times", TIMES[1:])
def test_with_differences_the_gradient_there_shrinks_with_the_square_of_the_step(times: TimeSampler) -> None:
    pulls = []
    for h in (2e-3, 1e-3):
        objective = FlowMapMatching(Wide(times), CentralDifference(h, clamp=False), velocity="teacher")
        pulls.append(float(gradient(GaussianFlowMap(MEAN, STD), objective).abs().max()))
    assert pulls[1] < 1e-4
    assert 3.5 < pulls[0] / pulls[1] < 4.5


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("derivative", [ForwardMode(), CentralDifference()])
@pytest.mark.parametrize("wrong", [{"scale": 1.1}, {"bias": 0.1}])
def test_at_a_wrong_map_it_pulls_back(times: TimeSampler, derivative: Derivative, wrong: dict[str, float]) -> None:
    objective = FlowMapMatching(Wide(times), derivative, velocity="teacher")
    student = GaussianFlowMap(MEAN, STD, **wrong)
    (name,) = wrong
    assert gradient(student, objective)[[*student.trained()].index(name)] > 0.01


@pytest.mark.parametrize("times", TIMES)
def test_the_velocity_of_the_data_is_the_teachers_on_average(times: TimeSampler) -> None:
    """Its target is unbiased with an exact derivative (it is linear in v): four standard errors at the true map."""
    objective = FlowMapMatching(Wide(times), ForwardMode())
    g = torch.stack([gradient(GaussianFlowMap(MEAN, STD), objective, data(seed=s), s) for s in range(40)])
    assert (g.mean(0).abs() < 4 * g.std(0) / 40**0.5).all()
    wrong = gradient(GaussianFlowMap(MEAN, STD, bias=0.1), objective, data(4096))
    assert wrong[3] > 0.01


def test_it_learns_a_flow_map_from_data_alone() -> None:
    """From no map at all: scale and bias of a wrong one go to 1 and 0 by gradient descent."""
    student = GaussianFlowMap(MEAN, STD, scale=0.7, bias=0.3)
    student.mean.requires_grad_(False)
    student.std.requires_grad_(False)
    objective = FlowMapMatching(Wide(Triangle()), ForwardMode())
    optimizer = torch.optim.SGD(student.parameters(), 0.3)
    for step in range(150):
        optimizer.zero_grad()
        objective({"student": student}, data(512, step), Rng.seeded(step), Shared()).value.backward()
        optimizer.step()
    assert abs(float(student.scale.detach()) - 1) < 0.05
    assert abs(float(student.bias.detach())) < 0.05


@frozen
class Recorder:
    """A derivative that is zero, and remembers what it was asked for."""

    asked: list[dict[str, Any]]

    def __call__(self, u: Any, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        self.asked.append({"t": t, "r": r, "v": v, "cond": cond, "grad": torch.is_grad_enabled()})
        return torch.zeros_like(z)


def test_the_derivative_is_asked_off_the_diagonal_alone_and_without_a_graph() -> None:
    recorder = Recorder([])
    student = CountingFlowMap(GaussianFlowMap())
    FlowMapMatching(Triangle(), recorder)({"student": student}, data(8), Rng.seeded(0), Shared())
    (asked,) = recorder.asked
    assert len(asked["t"]) == 4 and (asked["t"] > asked["r"]).all() and not asked["grad"]
    FlowMapMatching(Diagonal(), recorder)({"student": student}, data(8), Rng.seeded(0), Shared())
    assert len(recorder.asked) == 1
    assert (student.graph, student.plain) == (16, 0)


class Spy(FlowMap):
    """Remembers its calls; the text alone is its velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.calls: list[dict[str, Any]] = []

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.calls.append({"z": z, "t": t, "r": r, "cond": dict(cond), "grad": torch.is_grad_enabled()})
        return self.weight * cond["text"][:, :1] + 0 * z

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        return x, {**cond, "history": x}


def told(n: int = 8) -> Batch:
    return Batch(torch.randn(n, 1), {"text": torch.ones(n, 2)}, {"text": torch.zeros(1, 2)})


@pytest.mark.parametrize("guidance", [Exact(3.0, 0.0), Fused(3.0, 0.0)])
def test_the_unconditional_branch_has_no_text_and_keeps_the_history(guidance: Exact | Fused) -> None:
    u, batch = Spy(), told()
    FlowMapMatching(Triangle(), Recorder([]), guidance=guidance)({"student": u}, batch, Rng.seeded(0), Shared())
    conditional, null = u.calls
    assert conditional["grad"] and not null["grad"]
    assert torch.equal(null["cond"]["text"], torch.zeros(8, 2))
    assert torch.equal(null["cond"]["history"], batch.x)
    assert torch.equal(null["z"], conditional["z"])
    assert torch.equal(null["r"], conditional["t"] if isinstance(guidance, Exact) else conditional["r"])


def test_prompts_are_dropped_at_the_rate_asked_for_and_the_history_never() -> None:
    n, u = 4000, Spy()
    batch = told(n)
    FlowMapMatching(Diagonal(), guidance=Exact(1.0, 0.1))({"student": u}, batch, Rng.seeded(0), Shared())
    (call,) = u.calls
    dropped = float((call["cond"]["text"][:, 0] == 0).float().mean())
    assert abs(dropped - 0.1) < 4 * (0.1 * 0.9 / n) ** 0.5
    assert torch.equal(call["cond"]["history"], batch.x)


def test_where_the_prompt_is_dropped_the_target_is_not_guided() -> None:
    """u_∅ = 0 here, so v̂ = w v where the prompt stands, v where it was dropped; the derivative runs along v̂ too."""
    recorder, u, batch = Recorder([]), Spy(), told(64)
    objective = FlowMapMatching(Triangle(0.5, 0.25), recorder, guidance=Exact(3.0, 0.5))
    objective({"student": u}, batch, Rng.seeded(0), Shared())
    conditional, (asked,) = u.calls[0], recorder.asked
    off = conditional["t"] != conditional["r"]
    t = conditional["t"][off, None]
    v = (conditional["z"] - batch.x)[off] / t  # ε - x, of z = (1 - t) x + t ε
    kept = conditional["cond"]["text"][off, :1] == 1
    assert 0 < kept.sum() < off.sum() == 32
    torch.testing.assert_close(asked["v"], torch.where(kept, 3 * v, v), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(asked["cond"]["text"][:, :1], kept.float())


@pytest.mark.parametrize("guidance", [Exact(3.0, 0.5), Fused(3.0, 0.5)])
def test_a_sample_whose_prompt_was_dropped_has_no_null_call(guidance: Exact | Fused) -> None:
    u, batch = Spy(), told(64)
    FlowMapMatching(Triangle(), Recorder([]), guidance=guidance)({"student": u}, batch, Rng.seeded(0), Shared())
    conditional, null = u.calls
    asked = conditional["cond"]["text"][:, 0] == 1
    assert 16 < asked.sum() < 48
    assert torch.equal(null["z"], conditional["z"][asked]) and torch.equal(null["cond"]["history"], batch.x[asked])
    gone = FlowMapMatching(Triangle(), Recorder([]), guidance=type(guidance)(3.0, 1.0))
    u.calls.clear()
    gone({"student": u}, batch, Rng.seeded(0), Shared())
    assert len(u.calls) == 1
    gone({"student": u}, batch, Rng.seeded(0), Shared(ranks=2))  # of all, to be in step with the others
    assert [len(call["z"]) for call in u.calls[1:3]] == [64, 64]


WITH_NULL = [
    FlowMapMatching(Triangle(), guidance=Exact(3.0, 0.5)),
    FlowMapMatching(Triangle(), guidance=Fused(3.0, 0.5)),
    FlowMapMatching(Triangle(), reweight=(Balanced(),), guidance=Exact(3.0, 0.5), velocity="teacher"),
]


@pytest.mark.parametrize("objective", WITH_NULL, ids=["exact", "fused", "teacher"])
def test_it_is_what_it_would_be_with_a_null_call_for_every_sample(objective: FlowMapMatching) -> None:
    spec = Wan21().tiny()
    nets = spec.build(frozenset({"student", "teacher"}), device=torch.device("cpu"), dtype=torch.float32)
    x, text = spec.example(6)
    batch = Batch(x, text, {name: torch.zeros_like(value[:1]) for name, value in text.items()})
    for n, p in enumerate(nets["student"].trained().values()):
        p.data += 0.02 * Rng.seeded(1, n).noise_like(p)  # adapters begin as nothing

    def found() -> list[Tensor]:
        value = objective(nets, batch, Rng.seeded(0), Shared()).value
        gradients = torch.autograd.grad(value, [*nets["student"].trained().values()], allow_unused=True)
        return [value, *(g for g in gradients if g is not None)]

    few = found()
    module = importlib.import_module(FlowMapMatching.__module__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_indices", lambda mask, shared: torch.arange(len(mask)))
        every = found()
    for one, other in zip(few, every, strict=True):
        assert (one - other).norm() <= 2e-5 * other.norm()


def test_the_target_is_v_minus_the_gap_times_the_derivative() -> None:
    """u = weight · text = 1, derivative 2: the loss is (1 - v + 2 (t - r))², mean over elements and samples."""

    def two(u: Any, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        return torch.full_like(z, 2.0)

    u, batch = Spy(), told(16)
    loss = FlowMapMatching(Triangle(), two)({"student": u}, batch, Rng.seeded(0), Shared())
    call = u.calls[0]
    t, r = call["t"][:, None], call["r"][:, None]
    v = (call["z"] - batch.x) / t
    expected = (1 - v + 2 * (t - r)).square()
    torch.testing.assert_close(loss.value, expected.mean(), atol=1e-4, rtol=1e-4)
    off = (t != r)[:, 0]
    torch.testing.assert_close(loss.logs["loss/diagonal"].value, expected[~off].mean(), atol=1e-4, rtol=1e-4)
    assert int(loss.logs["loss/edge"].count) == 4 and int(loss.logs["loss/free"].count) == 4


def test_raw_losses_are_logged_whatever_the_reweight() -> None:
    def logged(reweight: tuple[Any, ...]) -> dict[str, float]:
        objective = FlowMapMatching(Wide(Triangle()), ForwardMode(), reweight)
        loss = objective({"student": GaussianFlowMap(scale=1.3)}, data(), Rng.seeded(0), Shared())
        return {name: float(mean.value) for name, mean in loss.logs.items()}

    assert logged(()) == logged((Beta(), Balanced()))
    assert {*logged(())} == {"loss/diagonal", "loss/edge", "loss/free"}


def test_reweights_apply_in_order() -> None:
    seen = []

    def first(loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        seen.append(loss)
        return torch.full_like(loss, 2.0)

    def second(loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        seen.append(loss)
        return loss

    loss = FlowMapMatching(reweight=(first, second))({"student": Spy()}, told(), Rng.seeded(0), Shared())
    torch.testing.assert_close(seen[1], 2 * seen[0])
    torch.testing.assert_close(loss.value, (4 * seen[0] ** 2).mean())


def test_the_teacher_learns_where_it_is_the_role() -> None:
    teacher = GaussianFlowMap()
    objective = FlowMapMatching(role="teacher")
    assert objective.needs == {"teacher"}
    objective({"teacher": teacher}, data(), Rng.seeded(0), Shared()).value.backward()
    assert teacher.scale.grad is not None


def test_the_teachers_velocity_is_guided_and_has_no_graph() -> None:
    u, teacher, batch = Spy(), Spy(), told()
    objective = FlowMapMatching(Diagonal(), guidance=Exact(3.0, 0.0), velocity="teacher")
    assert objective.needs == {"student", "teacher"}
    loss = objective({"student": u, "teacher": teacher}, batch, Rng.seeded(0), Shared())
    (call,) = teacher.calls
    assert not call["grad"]
    assert call["cond"]["text"][:, 0].tolist() == [1.0] * 8 + [0.0] * 8
    torch.testing.assert_close(loss.value, torch.tensor((1 - 3.0) ** 2 / 9))  # u = 1, v̂ = 0 + 3 (1 - 0)


def test_a_guided_teacher_with_the_fused_form_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"FlowMapMatching.guidance = Fused\(w=3.0.*guided already; use Exact"):
        FlowMapMatching(guidance=Fused(3.0), velocity="teacher")


def test_an_unknown_velocity_is_an_error() -> None:
    with pytest.raises(ValueError, match=r".velocity = .*: must be '"):
        FlowMapMatching(velocity="critic")  # type: ignore[arg-type]


def test_a_causal_student_is_trained_on_its_history() -> None:
    spec = Toy(causal=True)
    u = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    x, c = spec.example(4)
    objective = FlowMapMatching(Triangle(), guidance=Exact(3.0, 0.1))
    batch, null = Batch(x, c, {"text": torch.zeros(1, 3)}), {"text": torch.zeros(1, 3)}
    value = objective({"student": u}, batch, Rng.seeded(0), Shared()).value
    other = objective({"student": u}, Batch(x.flip(1), c, null), Rng.seeded(0), Shared()).value
    assert value.isfinite() and value != other


def test_noise_and_data_are_the_same_for_a_split_batch() -> None:
    """Two micro-batches, each with its place in the global batch, see the states of the whole."""
    u, batch = Spy(), told(8)
    FlowMapMatching(Triangle(), Recorder([]))({"student": u}, batch, Rng((0,)), Shared())
    whole = u.calls[0]
    for positions in ((0, 1, 2, 3), (4, 5, 6, 7)):
        part = Batch(batch.x[list(positions)], {"text": torch.ones(4, 2)}, batch.null)
        FlowMapMatching(Triangle(), Recorder([]))({"student": u}, part, Rng((0,), positions, 8), Shared())
        for name in ("z", "t", "r"):
            assert torch.equal(u.calls[-1][name], whole[name][list(positions)])


def test_the_state_is_the_interpolant() -> None:
    u, batch = Spy(), told(8)
    FlowMapMatching(Diagonal())({"student": u}, batch, Rng((0,)), Shared())
    (call,) = u.calls
    rng = Rng((0,))
    rng.uniform(8, batch.x)  # the drops
    t, _ = Diagonal()(8, rng.fork(OF_PAIRS), batch.x)
    torch.testing.assert_close(call["z"], interpolate(batch.x, rng.noise_like(batch.x), t)[0])


@pytest.mark.parametrize("times", TIMES[1:])
def test_with_its_own_velocity_it_rests_at_the_true_flow_map(times: TimeSampler) -> None:
    objective = FlowMapMatching(Wide(times), ForwardMode(), velocity="student")
    assert gradient(GaussianFlowMap(MEAN, STD), objective).abs().max() < 1e-9
    assert objective.needs == {"student"}


def test_its_own_velocity_is_asked_without_a_graph_and_is_all_of_the_target() -> None:
    recorder, u, batch = Recorder([]), Spy(), told()
    objective = FlowMapMatching(Triangle(0.0, 0.0), recorder, guidance=Exact(3.0, 0.0), velocity="student")
    loss = objective({"student": u}, batch, Rng.seeded(0), Shared())
    conditional, own = u.calls
    assert conditional["grad"] and not own["grad"]
    assert torch.equal(own["t"], own["r"]) and torch.equal(own["t"], conditional["t"])
    assert torch.equal(own["cond"]["text"], conditional["cond"]["text"]) and "history" in own["cond"]
    assert float(loss.value.detach()) == 0.0  # u = v = 1, and the derivative 0
    assert torch.equal(recorder.asked[0]["v"], torch.ones(8, 1))


@pytest.mark.parametrize("times", TIMES)
def test_with_the_predicted_tangent_the_mean_target_is_the_flow_map(times: TimeSampler) -> None:
    """Four standard errors at the true map, as with the velocity of the data."""
    objective = FlowMapMatching(Wide(times), Predicted(ForwardMode()))
    g = torch.stack([gradient(GaussianFlowMap(MEAN, STD), objective, data(seed=s), s) for s in range(40)])
    assert (g.mean(0).abs() < 4 * g.std(0) / 40**0.5).all()
    wrong = gradient(GaussianFlowMap(MEAN, STD, bias=0.1), FlowMapMatching(Wide(times), Predicted()), data(4096))
    assert wrong[3] > 0.01


def test_with_the_predicted_tangent_the_loss_of_the_true_map_is_the_noise_of_v() -> None:
    """u + (t - r) D u = v(z_t, t), a velocity that is predicted from z_t alone."""
    true, batch = GaussianFlowMap(MEAN, STD), data()
    objective = FlowMapMatching(Wide(Triangle(0.0, 0.0)), Predicted(ForwardMode()))
    u = Recording(true)
    loss = objective({"student": u}, batch, Rng.seeded(0), Shared())
    z, t = u.first
    v = (z - batch.x) / t[:, None]
    torch.testing.assert_close(loss.value, (true(z, t, t, {}) - v).square().mean(), rtol=1e-6, atol=0)


class Recording(FlowMap):
    """`u`, and (z, t) of its first call."""

    def __init__(self, u: FlowMap) -> None:
        super().__init__()
        self.u = u
        self.first: Any = None

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.first = self.first or (z, t)
        return self.u(z, t, r, cond)


def test_the_derivative_comes_in_slowly() -> None:
    """u = 1, derivative 2: (1 - v + ϱ 2 (t - r))², with ϱ of the iteration."""

    def two(u: Any, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        return torch.full_like(z, 2.0)

    for iteration, ϱ in ((0, 0.0), (5, 0.5), (1000, 0.99)):
        u, batch = Spy(), told(16)
        objective = FlowMapMatching(Triangle(0.0, 0.0), two, warmup=Ramp(10, 0.99))
        loss = objective({"student": u}, batch, Rng.seeded(0), Shared(iteration))
        t, r = u.calls[0]["t"][:, None], u.calls[0]["r"][:, None]
        v = (u.calls[0]["z"] - batch.x) / t
        torch.testing.assert_close(loss.value, (1 - v + ϱ * 2 * (t - r)).square().mean(), atol=1e-3, rtol=1e-3)


def test_before_its_warm_up_a_derivative_that_is_not_finite_costs_nothing() -> None:
    """It has the factor 0 then, and 0 times it would not be 0."""

    def overflows(u: Any, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        return torch.full_like(v, torch.inf)

    objective = FlowMapMatching(Triangle(0.0, 0.0), overflows, warmup=Ramp(10))
    for iteration, finite in ((0, True), (1, False)):
        loss = objective({"student": Spy()}, told(4), Rng.seeded(0), Shared(iteration))
        assert loss.finite is not None and loss.finite.tolist() == [finite] * 4
        assert bool(loss.value.isfinite()) == finite
