"""The flow-map methods are the papers': their numbers, their costs, where they rest, and that they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from flowmap_consistency import ayf, meanflow, self_distillation, shortcut, tvm
from flowmap_consistency.lagrangian import LagrangianMatching
from flowmap_consistency.self_distillation import esd, lsd, psd
from flowmap_consistency.semigroup import Anywhere, Middle, SemigroupMatching
from torch import Tensor

from flowmap import AdamW, Batch, Ema, Recipe, Rng, Stage, distill
from flowmap._types import Role, Shared
from flowmap.derivative import EndDifference, EndForwardMode, ForwardMode, Predicted
from flowmap.guidance import Exact
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.methods.meanflow import improved
from flowmap.objectives import Objective
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.objectives.mixture import Mixture
from flowmap.reweights import Adaptive, Normalised, Ramp
from flowmap.testing import GaussianFlowMap, GuidedGaussianFlowMap, counting
from flowmap.times import Diagonal, Dyadic, Gap, LogitNormal, Triangle
from flowmap.training.loop import Trainer
from tests.consistency.oracle import Bent, pull
from tests.consistency.test_calls import NONE, calls
from tests.objectives.test_flow_map_matching import MEAN, STD, Wide
from tests.toys import Toy
from tests.toys import data as toy_data

DATA: list[Callable[..., Method]] = [improved, shortcut.shortcut, lsd, esd, psd, tvm.tvm]
TAUGHT: list[Callable[..., Method]] = [ayf.emd, ayf.lmd]


def terms(method: Method) -> tuple[tuple[float, Objective], ...]:
    (update,) = method.updates
    assert (update.role, update.every, update.skip) == ("student", 1, None)
    return update.terms


# ---------------------------------------------------------------------- their numbers


def test_improved_meanflow_is_the_published_one() -> None:
    """Half on the diagonal, logit-normal (-0.4, 1), p = 1; the tangent is predicted."""
    times, guidance = Triangle(0.5, 0.0, 1.0, LogitNormal(-0.4, 1.0)), Exact(1.0, 0.1)
    matching = FlowMapMatching(times, Predicted(ForwardMode()), (Adaptive(1.0, 1e-2),), guidance)
    assert improved().updates == (Update("student", ((1.0, matching),)),)


def test_shortcut_is_the_published_one() -> None:
    """128 steps at most, an eighth of the batch, clipped at 4; the halves of 1 / 64 are Euler steps."""
    flow = FlowMapMatching(Diagonal(), guidance=Exact(1.0, 0.1))
    halves = SemigroupMatching(Dyadic(7), Middle(finest=1 / 128), guidance=Exact(1.0, 0.1), clip=4.0)
    assert terms(shortcut.shortcut()) == ((1.0, Mixture(((0.875, flow), (0.125, halves)))),)


def test_ayf_is_the_published_one() -> None:
    """gap = sigmoid(N(-0.8, 1)), r uniform; c = 0.1; ϱ up to 0.99 in 10 000 iterations."""
    times, norm, guidance = Gap(LogitNormal(-0.8, 1.0)), (Normalised(0.1),), Exact(2.0, 0.0)
    eulerian = FlowMapMatching(times, ForwardMode(), norm, guidance, "teacher", warmup=Ramp(10_000, 0.99))
    assert terms(ayf.emd()) == ((1.0, eulerian),)
    lagrangian = LagrangianMatching(times, EndForwardMode(), norm, guidance, "teacher", through=False)
    assert terms(ayf.lmd()) == ((1.0, lagrangian),)


def test_self_distillation_is_the_published_one() -> None:
    """Three quarters of flow matching; the rest of any t and r."""
    guidance, times = Exact(1.0, 0.1), Triangle(0.0, 0.0)
    flow = FlowMapMatching(Diagonal(), guidance=guidance)
    rest = {
        lsd(): LagrangianMatching(times, EndForwardMode(), (), guidance, "student", through=True),
        esd(): FlowMapMatching(times, ForwardMode(), (), guidance, "student"),
        psd(): SemigroupMatching(times, Middle(), (), guidance),
        psd(split="anywhere"): SemigroupMatching(times, Anywhere(), (), guidance),
    }
    for method, objective in rest.items():
        assert terms(method) == ((1.0, Mixture(((0.75, flow), (0.25, objective)))),)


def test_tvm_is_the_published_one() -> None:
    """r and s logit-normal (-0.4, 1), r below 1 - gap; both terms on the whole batch; w = 2 for one step."""
    times = Gap(LogitNormal(-0.8, 1.0), LogitNormal(-0.4, 1.0))
    end = LagrangianMatching(times, EndForwardMode(), (), Exact(2.0, 0.1), "student", through=True)
    flow = FlowMapMatching(Diagonal(LogitNormal(-0.4, 1.0)), guidance=Exact(2.0, 0.1))
    assert terms(tvm.tvm()) == ((1.0, end), (1.0, flow))


@pytest.mark.parametrize("make", [lsd, esd, psd])
def test_self_distillation_weighs_both_parts_alike(make: Callable[..., Method]) -> None:
    ((_, mixture),) = terms(make(p=0.5, c=0.1))
    assert isinstance(mixture, Mixture)
    assert {part.reweight for part in inside(mixture)} == {(Adaptive(0.5, 0.1),)}


@pytest.mark.parametrize("make", [*DATA, *TAUGHT])
def test_a_method_cites_its_paper_and_says_whom_it_asks(make: Callable[..., Method]) -> None:
    method = make()
    assert all(entry.startswith("@article{") for entry in method.citations) and method.citations
    assert method.needs == ({"student"} if make in DATA else {"student", "teacher"})
    assert method.trains == {"student"}
    if make in DATA:
        assert make(velocity="teacher").needs == {"student", "teacher"}


# ---------------------------------------------------------------------- their costs


@pytest.mark.parametrize(
    "method, student, teacher",
    [
        # (G, F, J, GJ) a sample
        (improved(), (1, 0.5, 0.5, 0), NONE),
        (improved(diagonal=0.0, w=2.0, drop=0.0), (1, 2, 1, 0), NONE),
        (shortcut.shortcut(), (1, 0.25, 0, 0), NONE),
        (shortcut.shortcut(share=1.0), (1, 2, 0, 0), NONE),
        (ayf.emd(), (1, 0, 1, 0), (0, 2, 0, 0)),
        (ayf.emd(w=1.0), (1, 0, 1, 0), (0, 1, 0, 0)),
        (ayf.lmd(), (1, 0, 1, 0), (0, 2, 0, 0)),
        (lsd(), (0.75, 0.25, 0, 0.25), NONE),
        (lsd(diagonal=0.0), (0, 1, 0, 1), NONE),
        (lsd(diagonal=0.0, derivative=EndDifference()), (2, 1, 0, 0), NONE),
        (esd(), (1, 0.25, 0.25, 0), NONE),
        (esd(diagonal=0.0), (1, 1, 1, 0), NONE),
        (psd(), (1, 0.5, 0, 0), NONE),
        (psd(diagonal=0.0, split="anywhere"), (1, 2, 0, 0), NONE),
        (psd(velocity="teacher", w=3.0, drop=0.0), (1, 0.5, 0, 0), (0, 1.5, 0, 0)),
        (tvm.tvm(), (1, 2, 0, 1), NONE),
        (tvm.tvm(w=1.0), (1, 1, 0, 1), NONE),
        (tvm.tvm(through=False), (2, 2, 1, 0), NONE),
    ],
)
def test_calls(method: Method, student: tuple[float, ...], teacher: tuple[float, ...]) -> None:
    """The table: Shortcut 1 G + 0.25 F; AYF-EMD 1 G + 1 J + 2 F_T; LSD 1 GJ + 1 F; ESD 1 G + 1 J + 1 F;
    PSD 1 G + 2 F; TVM 1 GJ + 1 G + 2 F."""
    assert calls(method) == {"student": student, "teacher": teacher, "critic": NONE}


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("make", [shortcut.shortcut, lsd, esd, psd])
def test_shares_are_those_of_the_global_batch(make: Callable[..., Method], micro: int) -> None:
    whole, parts = (counted(make(), size) for size in (None, micro))
    assert whole == parts


def counted(method: Method, micro: int | None) -> tuple[int, ...]:
    nets = counting(Toy().build(frozenset[Role]({"student"}), device=torch.device("cpu"), dtype=torch.float32))
    Trainer(nets, Stage(method, 10, batch=8, micro=micro), toy_data(32)).step(0)
    u = nets["student"]
    return u.graph, u.plain, u.graph_j, u.plain_j


# ---------------------------------------------------------------------- where they rest


def wide(objective: Any) -> Any:
    """The objective with its times in float64."""
    if isinstance(objective, Mixture):
        return Mixture(tuple((share, wide(part)) for share, part in objective.parts))
    return attrs.evolve(objective, times=Wide(objective.times))


def off_diagonal(method: Method) -> Any:
    """What is asked off the diagonal."""
    ((_, first), *_) = terms(method)
    return wide(first.parts[1][1] if isinstance(first, Mixture) else first)


@pytest.mark.parametrize("make", [shortcut.shortcut, lsd, esd, psd, tvm.tvm, ayf.lmd])
def test_off_the_diagonal_there_is_no_gradient_at_the_true_map(make: Callable[..., Method]) -> None:
    options = {"levels": 3} if make is shortcut.shortcut else {}
    objective = off_diagonal(make(w=1.0, **options))
    if make is shortcut.shortcut:  # its shortest step is two Euler steps, which is an approximation
        objective = attrs.evolve(objective, split=Middle())
    assert pull(GaussianFlowMap(MEAN, STD), objective).abs().max() < 1e-9


@pytest.mark.parametrize("make", [shortcut.shortcut, lsd, esd, psd, tvm.tvm, ayf.lmd, ayf.emd])
@pytest.mark.parametrize("bend", [0.1, -0.1])
def test_off_the_diagonal_a_bend_is_pulled_straight(make: Callable[..., Method], bend: float) -> None:
    assert float(pull(Bent(bend), off_diagonal(make(w=1.0)), iteration=10_000)) / bend > 0.01


def test_emd_rests_at_the_true_map_once_its_tangent_is_whole() -> None:
    """ϱ = 1; at the paper's 0.99, close to it, and at 0 at the diagonal's velocity for every r."""
    whole = off_diagonal(ayf.emd(w=1.0, top=1.0, warmup=0))
    assert pull(GaussianFlowMap(MEAN, STD), whole).abs().max() < 1e-9
    published = off_diagonal(ayf.emd(w=1.0))
    first, last = (pull(GaussianFlowMap(MEAN, STD), published, iteration=i).abs().max() for i in (0, 10_000))
    assert first > 0.3
    assert 0 < last < first / 5


def from_data(method: Method, w: float, **wrong: float) -> Tensor:
    """The mean gradient for (scale, bias) in standard errors, of data N(1, 0.5²) under guidance w."""
    student, found = GuidedGaussianFlowMap(1.0, 0.5, w=w, **wrong), []
    for seed in range(20):
        x = 1.0 + 0.5 * Rng.seeded(7, seed).noise_like(torch.empty(256, 16))
        batch = Batch(x, {"label": torch.ones(256)}, {"label": torch.zeros(1)})
        nets: Any = {"student": student}
        keyed = [(weight, o, Rng.seeded(seed, k)) for k, (weight, o) in enumerate(terms(method))]
        value = sum(weight * o(nets, batch, rng, Shared()).value for weight, o, rng in keyed)
        found.append(torch.stack(torch.autograd.grad(value, [student.scale, student.bias])))
    g = torch.stack(found)
    return g.mean(0) / (g.std(0) / len(g) ** 0.5)


@pytest.mark.parametrize("w", [1.0, 3.0])
@pytest.mark.parametrize("make", [improved, lsd, esd, psd, tvm.tvm])
def test_from_data_alone_they_rest_at_the_flow_map_of_the_guided_field(make: Callable[..., Method], w: float) -> None:
    """On average: the velocities of the data are noisy; null branch and bootstraps are the student's own."""
    assert from_data(make(w=w, drop=0.0), w).abs().max() < 4
    assert from_data(make(w=w, drop=0.0), w, scale=1.1)[0] > 8
    assert from_data(make(w=w, drop=0.0), w, bias=0.1)[1] > 8


# ---------------------------------------------------------------------- and that they train


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("make", [*DATA, *TAUGHT])
def test_they_train_students_of_either_kind(make: Callable[..., Method], causal: bool) -> None:
    spec, method = Toy(causal=causal), make(w=2.0)
    stage = Stage(method, 2, batch=8, optimizer=AdamW(1e-3), ema=None)
    built = spec.build(frozenset[Role]({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    after = distill(Recipe(spec, (stage,), data=toy_data(16, spec)), device="cpu").state_dict()
    moved = [name for name, value in built.state_dict().items() if not torch.equal(after[name], value)]
    assert moved and all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("make", [*DATA, *TAUGHT])
def test_every_call_of_a_causal_student_and_its_teacher_has_the_history(make: Callable[..., Method]) -> None:
    def check(module: Any, arguments: Any, keywords: Any) -> None:
        z, _, _, cond, *_ = [*arguments, *keywords.values()]
        seen.append("clean" in cond and len(cond["clean"]) == len(z))

    spec, seen = Toy(causal=True), list[bool]()
    nets = spec.build(frozenset[Role]({"student", "teacher"}), device=torch.device("cpu"), dtype=torch.float32)
    for u in nets.values():
        u.register_forward_pre_hook(check, with_kwargs=True)
    Trainer(nets, Stage(make(w=2.0), 10, batch=8), toy_data(16, spec)).step(0)
    assert len(seen) > 1 and all(seen)


@pytest.mark.parametrize("make", [lsd, psd, tvm.tvm, ayf.lmd])
def test_a_network_with_recomputed_blocks_trains_with_differences(make: Callable[..., Method]) -> None:
    options = {} if make is psd else {"derivative": EndDifference()}
    spec = Toy(checkpointing=True)
    nets = spec.build(frozenset[Role]({"student", "teacher"}), device=torch.device("cpu"), dtype=torch.float32)
    logs = Trainer(nets, Stage(make(**options), 10, batch=8), toy_data(16, spec)).step(0)
    assert float(logs["student/gradient_norm"].value) > 0


def test_both_terms_of_tvm_are_logged() -> None:
    nets = Toy().build(frozenset[Role]({"student"}), device=torch.device("cpu"), dtype=torch.float32)
    logs = Trainer(nets, Stage(tvm.tvm(), 10, batch=8), toy_data(16)).step(0)
    assert int(logs["student/loss/free"].count) == int(logs["student/loss/diagonal"].count) == 8


# ---------------------------------------------------------------------- at the scale of a recipe


def recipe(velocity: Any = "teacher") -> Recipe:
    own = anyflow.forward(shift=2.0, guidance=3.0, velocity=velocity)
    stage = Stage(own, 100, batch=16, optimizer=AdamW(1e-3, warmup=5), ema=Ema(0.9, 10))
    return Recipe(Shifted(), (stage,), name="own")


class Shifted(Toy):
    shift = 2.0


STAGES = [
    (meanflow.stages, "meanflow"),
    (meanflow.improved_stages, "improved_meanflow"),
    (shortcut.stages, "shortcut"),
    (ayf.stages, "ayf_emd"),
    (ayf.lmd_stages, "ayf_lmd"),
    (self_distillation.lsd_stages, "lsd"),
    (self_distillation.esd_stages, "esd"),
    (self_distillation.psd_stages, "psd"),
    (tvm.stages, "tvm"),
]


@pytest.mark.parametrize("stages, name", STAGES)
def test_a_recipe_is_followed_in_everything_but_the_method(stages: Any, name: str) -> None:
    (stage,) = stages(recipe())
    (own,) = recipe().stages
    assert stage.method.name == name
    assert attrs.evolve(stage, method=own.method) == own
    assert stage.method.needs == {"student", "teacher"}
    parts = [o for _, term in stage.method.updates[0].terms for o in inside(term)]
    assert {part.guidance.w for part in parts} == {3.0}
    assert {part.times.shift for part in parts} == {2.0}
    assert {part.split.shift for part in parts if isinstance(part, SemigroupMatching)} <= {2.0}
    if not name.startswith("ayf"):
        assert stages(recipe("data"))[0].method.needs == {"student"}


def inside(objective: Any) -> list[Any]:
    return [part for _, part in objective.parts] if isinstance(objective, Mixture) else [objective]


def test_the_warm_up_is_a_fifth_of_the_recipes_steps() -> None:
    ((_, matching),) = ayf.stages(recipe())[0].method.updates[0].terms
    assert matching.warmup == Ramp(20, 0.99)
