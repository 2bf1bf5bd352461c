"""A causal student follows a causal teacher: with a bidirectional one its chunks have less variance than the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_consistency.consistency import consistency
from flowmap_consistency.self_forcing import TrajectoryRegression
from flowmap_far import Far
from torch import Tensor

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, Stage, TensorData, distill
from flowmap._types import Cond, Latent, Role, Shared, Time
from flowmap.derivative import Derivative, ForwardMode, MeanVelocity
from flowmap.methods import anyflow
from flowmap.model import ConditionError
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.testing import counting
from flowmap.times import Triangle
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
    with pytest.raises(ConditionError, match=r"or a causal Recipe\.forward_teacher"):
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
