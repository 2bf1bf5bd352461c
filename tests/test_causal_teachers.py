"""A causal student follows a causal teacher: with a bidirectional one its chunks have less variance than the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_consistency import rcm
from flowmap_consistency.consistency import consistency
from flowmap_consistency.scm import ContinuousConsistency, scm
from flowmap_consistency.self_forcing import TrajectoryRegression, ode_init, self_forcing
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_far import Far
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, Stage, TensorData, distill
from flowmap._types import Cond, Latent, Mean, Role, Shared, Time
from flowmap.derivative import Derivative, ForwardMode, MeanVelocity
from flowmap.evaluation import card
from flowmap.methods import anyflow
from flowmap.model import Sampling
from flowmap.objectives import taught
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.recipe import RecipeError
from flowmap.reweights import Ramp
from flowmap.testing import counting
from flowmap.times import Diagonal, Triangle
from flowmap.training.loop import Trainer
from flowmap.training.ranks.networks import build
from tests.chain import Chain, Joint, covariance, drawn
from tests.methods.test_costs import BATCH
from tests.test_planted_defects import planted
from tests.toys import Toy, data

RHO = 0.8
CPU = torch.device("cpu")
LEARNT = ("first", "read", "std")


def fitted(teacher: FlowMap, steps: int = 160, samples: int = 8192) -> Chain:
    """A causal student of one step, regressed on trajectories of Euler steps."""
    u, batch = Chain(read=0.1, std=0.5, first=0.5), Batch(drawn(samples), {}, {})
    objective = TrajectoryRegression((1.0,), steps, 1.0, 1.0)
    nets: Mapping[Role, FlowMap] = {"student": u, "teacher": teacher}
    optimizer = torch.optim.LBFGS([getattr(u, name) for name in LEARNT], max_iter=8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(nets, batch, Rng.seeded(0), Shared()).value
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return u


def values(u: Chain) -> list[float]:
    return [float(getattr(u, name).detach()) for name in LEARNT]


def test_of_a_causal_teacher_the_student_makes_the_data() -> None:
    """x¹ = ε¹, x² = .8 x¹ + .6 ε²."""
    assert values(fitted(Chain())) == pytest.approx([1.0, 0.8, 0.6], abs=0.02)


def test_of_a_bidirectional_teacher_it_makes_less() -> None:
    """x = Σ^½ ε, whose first row is (.894, .447): of ε¹ alone .894 ε¹; and x² = .5 x¹ + .671 ε²."""
    first, read, std = values(fitted(Joint(covariance(RHO))))
    assert (first, read, std) == pytest.approx((0.894, 0.5, 0.671), abs=0.02)
    assert (read**2 * first**2 + std**2) ** 0.5 < 0.83  # the second chunk's, of 1


class Moved:
    """A tangent that moves the history, too: no derivative of what a chunk does after it."""

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        def along(h: float) -> Latent:
            return u(z + h * v, t + h, r, {**cond, "clean": cond["clean"] + h * v})

        return (along(1e-4) - along(-1e-4)) / 2e-4


def pull(teacher: FlowMap, derivative: Derivative) -> float:
    """The largest gradient of stage 1 at the exact causal map, over its parameters."""
    u, noise = Chain(), drawn(2048, seed=1)
    x = torch.cat([noise[:, :1], RHO * noise[:, :1] + 0.6 * noise[:, 1:]], 1)
    objective = FlowMapMatching(Triangle(), derivative, velocity="teacher")
    nets: Mapping[Role, FlowMap] = {"student": u, "teacher": teacher}
    value = objective(nets, Batch(x, {}, {}), Rng.seeded(2), Shared()).value
    found = torch.autograd.grad(value, list(u.parameters()), allow_unused=True)
    return max(float(g.abs()) for g in found if g is not None)


def test_the_exact_causal_map_has_no_gradient_with_a_causal_teacher_alone() -> None:
    exact = pull(Chain(), ForwardMode())
    assert exact < 1e-6  # times are float32
    assert pull(Joint(covariance(RHO)), ForwardMode()) > 0.02
    assert pull(Chain(), Moved()) > 0.02


# ------------------------------------------------------------------ two teachers in a recipe
CAUSAL = Toy(causal=True)
RECIPE = Recipe(
    CAUSAL,
    (Stage(anyflow.on_policy(velocity="teacher", steps=(2,)), 2, batch=BATCH, ema=None),),
    teacher=Toy(seed=1),
    forward_teacher=Toy(causal=True, seed=2),
    data=data(16),
)


def test_who_follows_trajectories_asks_the_causal_teacher_and_who_matches_distributions_the_other() -> None:
    nets = counting(build(RECIPE, CPU, torch.float32))
    assert nets.keys() == {"student", "teacher", "critic", "forward_teacher"} == RECIPE.roles
    assert not nets["forward_teacher"].trained()
    x, c = CAUSAL.example()
    z, c = nets["student"].teacher_forcing(x, c, Rng.seeded(0))
    t = torch.full((len(z),), 0.5)
    wanted = RECIPE.forward_teacher.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]  # type: ignore[union-attr]
    assert torch.equal(nets["forward_teacher"](z, t, t, c), wanted(z, t, t, c))
    nets["forward_teacher"].reset()
    Trainer(nets, RECIPE.stages[0], data(32)).step(0)
    calls = {role: nets[role].plain for role in ("teacher", "forward_teacher")}
    assert calls == {"teacher": 2 * BATCH, "forward_teacher": 2 * BATCH}


@pytest.mark.parametrize("method", [anyflow.forward(velocity="teacher"), consistency()], ids=lambda m: m.name)
def test_a_forward_stage_builds_no_bidirectional_teacher(method: Any) -> None:
    recipe = evolve(RECIPE, stages=(Stage(method, 2, batch=BATCH),))
    assert recipe.roles == {"student", "forward_teacher"}
    one = distill(recipe, device="cpu")
    other = distill(evolve(recipe, forward_teacher=Toy(causal=True, seed=3)), device="cpu")
    pairs = zip(one.trained().values(), other.trained().values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_far_learns_from_a_causal_far() -> None:
    spec = evolve(Far().tiny(), partition=(1, 2, 1), long=1.0, full=2)
    z, cond = spec.example(4)
    method = anyflow.forward(velocity="teacher")
    stage = Stage(method, 1, batch=4, optimizer=AdamW(1e-3), ema=None)
    recipe = Recipe(spec, (stage,), data=TensorData(z[:, :4], dict(cond), dict(spec.null(cond))))
    with pytest.raises(RecipeError, match=r"or a causal Recipe\.forward_teacher"):
        distill(recipe, device="cpu")
    distill(evolve(recipe, forward_teacher=evolve(spec, seed=3)), device="cpu")


def test_a_forward_teacher_that_nobody_asks_is_an_error() -> None:
    recipe = evolve(RECIPE, stages=(Stage(anyflow.forward(), 1),))
    assert recipe.wrong() == ("Recipe.forward_teacher: no objective follows a teacher's trajectories: must be None",)


DEFECTS = [
    (
        "the bidirectional teacher all the same",
        "flowmap.objectives",
        'if "forward_teacher" in nets and',
        "if False and",
    ),
    ("the critic's match asks the causal one", "flowmap.objectives", ' and "critic" not in needs', ""),
]


@pytest.mark.parametrize("module, old, new", [pytest.param(*rest, id=what) for what, *rest in DEFECTS])
def test_a_mistake_is_seen(module: str, old: str, new: str) -> None:
    with planted(module, old, new), pytest.raises((AssertionError, KeyError)):
        test_who_follows_trajectories_asks_the_causal_teacher_and_who_matches_distributions_the_other()


def test_trajectories_whose_chunks_do_not_see_the_ones_before_are_seen() -> None:
    module = "flowmap_consistency.self_forcing"
    with planted(module, "x[-1], batch.cond) if x else None, chunk", "x[-1], batch.cond) if False else None, chunk"):
        _, read, std = values(fitted(Chain()))
    assert abs(read - 0.8) > 0.5 or abs(std - 0.6) > 0.3


# ------------------------------------------------------------------ before anything is built
FAR = Far(TINY_WAN, lora=None, text_tokens=12, shift=1.0, partition=(1,) * 5, long=1.0)


@pytest.mark.parametrize(
    "method", [anyflow.forward(velocity="teacher"), consistency(), scm(), rcm.rcm()], ids=lambda m: m.name
)
def test_a_bidirectional_teacher_after_a_history_is_refused_before_it_is_built(method: Any) -> None:
    """Also one that is given as the forward teacher; trajectories of its own, and data, are allowed."""
    recipe = Recipe(FAR, (Stage(method, 1, batch=2),), data=MovingDigits(count=2))
    said = f"stage 0 ({method.name}) asks the teacher, tiny_wan, which makes all frames at once, about frames after a "
    (wrong,) = recipe.wrong()
    assert wrong.startswith(said) and wrong.endswith("the data's velocity, or a causal Recipe.forward_teacher")
    bidirectional = Wan21(TINY_WAN, lora=None, text_tokens=12, shift=1.0)
    assert len(evolve(recipe, teacher=bidirectional).wrong()) == 1
    assert (
        evolve(recipe, forward_teacher=bidirectional)
        .wrong()[0]
        .startswith(said.replace("teacher", "forward_teacher", 1))
    )
    assert not evolve(recipe, forward_teacher=evolve(FAR, attention="dense")).wrong()
    assert not evolve(recipe, backbone=bidirectional).wrong()
    with pytest.raises(RecipeError, match="which makes all frames at once"):
        distill(recipe, device="cpu")


def test_a_causal_teacher_of_other_chunks_is_refused_before_training() -> None:
    """It is asked after the student's own history, once, with the first sample."""
    stages = (Stage(consistency(), 1, batch=2),)
    recipe = Recipe(FAR, stages, forward_teacher=evolve(FAR, full=2), data=MovingDigits(count=2))
    with pytest.raises(
        RecipeError, match=r"the forward_teacher \(Far, tiny_wan\) does not take the data .* of it that"
    ):
        distill(recipe, device="cpu")


def test_what_asks_no_teacher_after_a_history_is_not_refused() -> None:
    for method in (anyflow.forward(), anyflow.on_policy(), ode_init(), self_forcing()):
        assert not Recipe(FAR, (Stage(method, 1, batch=2),)).wrong()


@frozen
class Guiding(Toy):
    """Of a student that has guidance built in."""

    built_in: float | None = 3.0

    def sampling(self) -> Sampling:
        return Sampling("flow_map", self.built_in)


def test_a_forward_teacher_is_not_guided_twice_and_the_other_is_not_blamed_for_it() -> None:
    method = anyflow.on_policy(velocity="teacher", guidance=3.0, teacher_guidance=4.0, steps=(2,))
    recipe = evolve(RECIPE, stages=(Stage(method, 1),), forward_teacher=Guiding(causal=True))
    (wrong,) = recipe.wrong()
    assert wrong.startswith(
        "stage 0 (anyflow_on_policy) guides the forward_teacher, Guiding, which has guidance 3 built in"
    )
    assert evolve(recipe, forward_teacher=Guiding(causal=True, built_in=None)).wrong()
    assert not evolve(recipe, forward_teacher=Guiding(causal=True, built_in=1.0)).wrong()
    unguided = anyflow.on_policy(velocity="teacher", guidance=1.0, teacher_guidance=4.0, steps=(2,))
    good = evolve(recipe, stages=(Stage(unguided, 1),))
    assert not good.wrong()
    assert card.guidance(good) == 3.0  # what the student learns of it is its guidance
    (wrong,) = evolve(good, teacher=Guiding()).wrong()
    assert wrong.startswith("stage 0 (anyflow_on_policy) guides the teacher, Guiding, which has guidance 3 built in")


# ------------------------------------------------------------------ sCM and rCM
def consistency_pull(teacher: FlowMap, derivative: Derivative, form: Any) -> float:
    """The largest gradient of continuous-time consistency at the exact causal map."""
    u, noise = Chain(), drawn(2048, seed=1)
    x = torch.cat([noise[:, :1], RHO * noise[:, :1] + 0.6 * noise[:, 1:]], 1)
    objective = ContinuousConsistency(Diagonal(), derivative, w=1.0, warmup=Ramp(), form=form)
    value = objective(taught({"student": u, "teacher": Joint(covariance(RHO)), "forward_teacher": teacher}, objective),
                      Batch(x, {}, {}), Rng.seeded(2), Shared()).value  # fmt: skip
    found = torch.autograd.grad(value, list(u.parameters()), allow_unused=True)
    return max(float(g.abs()) for g in found if g is not None)


@pytest.mark.parametrize("form", ["scm", "rcm"])
def test_continuous_consistency_rests_at_the_exact_causal_map_with_a_causal_teacher_alone(form: Any) -> None:
    """f = z - t u(z, t, 0) of each chunk does not change along the causal teacher's path, the history held."""
    assert consistency_pull(Chain(), ForwardMode(), form) < 1e-4  # times are float32, g is over ‖g‖ + 0.1
    assert consistency_pull(Joint(covariance(RHO)), ForwardMode(), form) > 0.02
    assert consistency_pull(Chain(), Moved(), form) > 0.02


def test_scm_and_rcm_run_on_far_with_a_causal_teacher() -> None:
    """A few iterations: finite, the student moves, and each teacher is asked where it must be."""
    teacher = evolve(FAR, attention="dense")
    for method in (scm(w=3.0, warmup=2), rcm.rcm(shift=1.0, w=3.0, every=2, consistency=1.0)):
        recipe = Recipe(
            FAR, (Stage(method, 3, batch=2, ema=None),), forward_teacher=teacher, data=MovingDigits(count=4)
        )
        nets = counting(build(recipe, CPU, torch.float32))
        loop = Trainer(nets, recipe.stages[0], recipe.data.load(FAR, None, device=CPU))  # type: ignore[union-attr]
        before = [p.detach().clone() for p in nets["student"].trained().values()]
        for iteration in range(3):
            logs = loop.step(iteration)
            assert float(logs.get("student/skipped", Mean.of(torch.zeros(1))).value) == 0.0
        assert any(not torch.equal(a, b) for a, b in zip(before, nets["student"].trained().values(), strict=True))
        assert nets["forward_teacher"].plain == (12 if method.name == "scm" else 8)
        assert ("teacher" in nets) == (method.name == "rcm")


guided = test_a_forward_teacher_is_not_guided_twice_and_the_other_is_not_blamed_for_it
unasked = test_what_asks_no_teacher_after_a_history_is_not_refused


@pytest.mark.parametrize(
    "old, new, test",
    [
        ('return "forward_teacher" if role', "return role if role", guided),
        ("taught_forward(o.needs) and not", "taught_forward(o.needs) or not", unasked),
    ],
)
def test_a_mistake_in_who_is_asked_is_seen(old: str, new: str, test: Any) -> None:
    with planted("flowmap.asked", old, new), pytest.raises((AssertionError, ValueError)):
        test()
