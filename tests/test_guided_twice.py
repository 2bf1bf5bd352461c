"""A network knows its guidance: more on top of it is refused, where it would be applied and before work."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_wan21 import Wan21

from flowmap import AdamW, Recipe, Rng, Stage, distill
from flowmap.evaluation import card
from flowmap.guidance import Guided, guided_euler_step
from flowmap.method import Method
from flowmap.methods import anyflow, finetune, meanflow
from flowmap.model import Sampling
from flowmap.objectives import Guides
from flowmap.plugins import collect, installed
from flowmap.recipe import RecipeError
from tests.evaluation.exact import curve
from tests.methods.test_methods import GIVEN
from tests.toys import Toy, data

CPU = torch.device("cpu")
METHODS = collect(installed(), "flowmap_methods")


@frozen
class Student(Toy):
    """A toy whose networks have guidance built in, as a student's do; None is some."""

    built_in: float | None = 3.0

    def sampling(self) -> Sampling:
        return Sampling("flow_map", self.built_in)


# ---------------------------------------------------------------- where it would be applied
def test_a_network_with_guidance_takes_no_more() -> None:
    spec = Toy()
    z, c = spec.example(2)
    u, t = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"], torch.tensor([0.7, 0.4])
    null = {name: value[:1] * 0 for name, value in c.items()}
    plain, guided = u.velocity(z, t, c), Guided(u, 3.0, null)
    assert u.guidance == 1.0 and guided.guidance == 3.0
    for built_in, said in ((2.4, "has guidance 2.4 built in, and guidance 3 would"), (None, "has guidance built in")):
        u.guidance = built_in
        assert torch.equal(u.velocity(z, t, c), plain) and torch.equal(u.velocity(z, t, c, null, 1.0), plain)
        for use in (
            lambda: u.velocity(z, t, c, null, 3.0),
            lambda: u.denoise(z, t, c, null, 3.0),
            lambda: Guided(u, 3.0, null),
            lambda: guided_euler_step(3.0, null)(u, z, t, t / 2, c, None, Rng.seeded(0)),
        ):
            with pytest.raises(ValueError, match=said):
                use()
        assert Guided(u, 1.0, null).guidance == built_in
    with pytest.raises(ValueError, match="this Guided has guidance 3 built in"):
        Guided(guided, 2.0, null)


# ---------------------------------------------------------------- before work
def stages(*methods: Method) -> tuple[Stage, ...]:
    return tuple(Stage(method, steps=1, batch=2, optimizer=AdamW(lr=1e-9)) for method in methods)


GUIDING = {
    "anyflow_forward": anyflow.forward(velocity="teacher", guidance=3.0),
    "anyflow_on_policy": anyflow.on_policy(),
    "meanflow": meanflow.meanflow(velocity="teacher", w=3.0),
    "ode": METHODS["causvid_ode_init"](),
    **{name: METHODS[name]() for name in ("lcm", "scm", "rcm", "dmd2", "causvid", "self_forcing", "phased_dmd")},
    **{name: METHODS[name]() for name in ("ayf_emd", "ayf_lmd")},
}


@pytest.mark.parametrize("method", GUIDING.values(), ids=GUIDING)
def test_a_teacher_with_guidance_is_not_guided_by(method: Method) -> None:
    said = f"stage 0 ({method.name}) guides the teacher, Student, which has guidance 3 built in, and guidance "
    for recipe in (Recipe(Student(), stages(method)), Recipe(Toy(), stages(method), teacher=Student())):
        (wrong,) = recipe.wrong()
        assert wrong.startswith(said) and wrong.endswith("would come on top of it: take 1, which is none")
    assert not Recipe(Toy(), stages(method)).wrong()
    assert not Recipe(Student(built_in=1.0), stages(method)).wrong()
    assert Recipe(Student(built_in=None), stages(method)).wrong()


def test_nothing_is_started(tmp_path: Path) -> None:
    recipe = Recipe(Student(), stages(anyflow.forward(velocity="teacher", guidance=3.0)), data=data())
    with pytest.raises(RecipeError, match="guidance 3 built in"):
        distill(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_teachers_curve_is_a_guide_too() -> None:
    recipe = Recipe(Student(), stages(finetune.finetune()), evaluation=curve())
    assert recipe.wrong()[0].startswith("the evaluation guides the teacher, Student, which has guidance 3 built in")
    for good in (curve(teacher_sampler="flow_map"), evolve(curve(), guidance=1.0)):
        assert not evolve(recipe, evaluation=good).wrong()


def test_the_students_own_guidance_on_data_is_learnt_and_not_applied_again() -> None:
    assert not Recipe(Student(), stages(finetune.finetune(guidance=3.0), anyflow.forward(guidance=5.0))).wrong()


@pytest.mark.parametrize("name", METHODS)
def test_whatever_asks_a_teacher_says_under_which_guidance(name: str) -> None:
    """Also with the teacher's velocity in place of the data's, where a method has the choice."""
    choice = "velocity" in inspect.signature(METHODS[name]).parameters
    given = GIVEN.get(name, ())
    for method in (METHODS[name](*given), *([METHODS[name](*given, velocity="teacher")] if choice else [])):
        for update in method.updates:
            for _, objective in update.terms:
                if "teacher" in objective.needs and objective.needs != {"teacher"}:
                    assert isinstance(objective, Guides) and set(objective.guides) == {"teacher"}, objective


# ---------------------------------------------------------------- what a student then has
LEARNT: Mapping[str, tuple[tuple[Method, ...], float | None, float | None]] = {
    "data": ((anyflow.forward(guidance=2.0),), 3.0, 2.0),
    "a teacher under guidance": ((anyflow.forward(velocity="teacher", guidance=2.0),), 1.0, 2.0),
    "a teacher with guidance": ((anyflow.forward(velocity="teacher", guidance=1.0),), 3.0, 3.0),
    "a teacher with some": ((anyflow.forward(velocity="teacher", guidance=1.0),), None, None),
    "a teacher's distribution": ((anyflow.on_policy(cotrain=0.0, teacher_guidance=4.0),), 1.0, 4.0),
    "the distribution of one with guidance": ((METHODS["dmd2"](w=1.0),), 3.0, 3.0),
    "data without a teacher": ((METHODS["consistency_training"](),), 3.0, 1.0),
    "a mixture": ((METHODS["esd"](w=3.0),), 1.0, 3.0),
    "a teacher alone": ((METHODS["ayf_lmd"](w=2.0),), 1.0, 2.0),
    "two stages": ((anyflow.forward(guidance=3.0), anyflow.on_policy(guidance=2.0)), 1.0, 2.0),
}


@pytest.mark.parametrize("methods, of_teacher, right", LEARNT.values(), ids=LEARNT)
def test_the_guidance_that_is_written_down(methods: Any, of_teacher: float | None, right: float | None) -> None:
    assert card.guidance(Recipe(Toy(), stages(*methods), teacher=Student(built_in=of_teacher))) == right


def test_a_student_comes_out_with_its_guidance(tmp_path: Path) -> None:
    """Out of `distill`, out of its directory, and as a backbone again."""
    spec = Wan21(TINY_WAN, lora=None, text_tokens=12)
    recipe = Recipe(spec, stages(anyflow.forward(shift=1.0, guidance=3.0)), data=MovingDigits(count=2))
    student = distill(recipe, out=tmp_path)
    again = Wan21(tmp_path / "student", lora=None, text_tokens=12)
    nets = again.build(frozenset({"student", "teacher"}), device=CPU, dtype=torch.float32)
    loaded = again.load(tmp_path / "student", device=CPU, dtype=torch.float32)
    assert [u.guidance for u in (student, loaded, *nets.values())] == [3.0] * 4
    assert again.sampling() == Sampling("flow_map", 3.0) and spec.sampling() == Sampling("euler", 1.0)
    assert Wan21(tmp_path / "student", pretrained=False).sampling() == Sampling()
    (wrong,) = Recipe(
        again, stages(anyflow.forward(velocity="teacher", guidance=3.0)), data=MovingDigits(count=2)
    ).wrong()
    assert wrong.startswith("stage 0 (anyflow_forward) guides the teacher, ") and "has guidance 3 built in" in wrong
    (tmp_path / "student" / "flowmap.json").unlink()
    assert again.sampling() == Sampling("flow_map", None)  # as a published one
