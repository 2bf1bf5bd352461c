"""distill(): what comes out, and what is said at once about what cannot be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, FlowMapSpec, Recipe, Rng, Stage, TensorData, distill, hookimpl, sample
from flowmap._types import Role
from flowmap.method import Method, Update
from flowmap.methods import anyflow, flow_matching
from flowmap.plugins import manager
from flowmap.recipe import RecipeError, describe, digest
from flowmap.training.store.checkpoint import CheckpointError
from tests.distributed import cases
from tests.toys import Toy, data

QUIET = manager(entry_points=False)
STAGE = Stage(anyflow.forward(), 2, batch=4, optimizer=AdamW(lr=1e-3), ema=Ema(0.5))
RECIPE = Recipe(Toy(), (STAGE,), data=data())


def run(recipe: Recipe = RECIPE, *arguments: Any, **options: Any) -> Any:
    return distill(recipe, *arguments, **{"device": "cpu", "pm": QUIET, **options})


def outputs(u: Any) -> torch.Tensor:
    z, c = Toy().example()
    with torch.no_grad():
        return u(z, torch.full((2,), 0.8), torch.full((2,), 0.2), c)


def test_a_recipe_in_a_student_out() -> None:
    student = run()
    x = sample(student, *Toy().example(), steps=3)
    assert x.isfinite().all()
    fresh = Toy().build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    assert not torch.equal(outputs(student), outputs(fresh))


def test_the_same_recipe_gives_the_same_student_and_another_seed_another() -> None:
    assert torch.equal(outputs(run()), outputs(run()))
    assert not torch.equal(outputs(run()), outputs(run(evolve(RECIPE, seed=1))))


def test_data_that_are_given_are_used_instead_of_the_recipes() -> None:
    other = evolve(data(), x=data().x + 1)
    assert torch.equal(outputs(run(RECIPE, other)), outputs(run(evolve(RECIPE, data=other))))
    assert not torch.equal(outputs(run(RECIPE, other)), outputs(run()))


class MakesData:
    """A source: asked once, for the backbone."""

    def __init__(self) -> None:
        self.asked: list[tuple[FlowMapSpec, Path | None]] = []

    def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> TensorData:
        self.asked.append((backbone, cache))
        return data()


def test_a_source_makes_the_data_for_the_backbone(tmp_path: Path) -> None:
    source = MakesData()
    assert torch.equal(outputs(run(RECIPE, source, out=tmp_path)), outputs(run()))
    assert source.asked == [(Toy(), tmp_path)]


def test_the_run_directory_says_what_was_done_and_holds_the_student(tmp_path: Path) -> None:
    student = run(out=tmp_path)
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written["backbone"] == describe(Toy()) and len(written["digest"]) == 64
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    assert json.loads((tmp_path / "env.json").read_text())["packages"]["torch"] == torch.__version__
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["iteration"]) for r in records] == [(0, 0), (0, 1)]
    assert "student/loss/diagonal" in records[0]
    loaded = Toy().load(tmp_path / "student", device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(outputs(loaded), outputs(student))


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run()
    assert not [*tmp_path.iterdir()]


def test_a_recipe_without_a_student_gives_its_teacher(tmp_path: Path) -> None:
    stage = evolve(STAGE, method=flow_matching.flow_matching())
    teacher = run(evolve(RECIPE, stages=(stage,)), out=tmp_path)
    assert teacher.role == "teacher"
    assert (tmp_path / "teacher").is_dir() and not (tmp_path / "student").exists()


def test_teacher_and_critic_come_from_the_recipes_teacher() -> None:
    seen = []

    class Plugin:
        @staticmethod
        @hookimpl
        def flowmap_train_start(trainer: Any) -> None:
            seen.append({role: (u.spec.seed, u.role) for role, u in trainer.nets.items()})

    stage = evolve(STAGE, method=anyflow.on_policy(steps=(2,)))
    recipe = evolve(RECIPE, stages=(stage,), teacher=Toy(seed=5))
    run(recipe, pm=manager(Plugin(), entry_points=False))
    assert seen == [{"student": (0, "student"), "teacher": (5, "teacher"), "critic": (5, "critic")}]


def test_observers_see_every_stage_and_its_logs() -> None:
    seen: list[Any] = []

    class Plugin:
        @staticmethod
        @hookimpl
        def flowmap_train_start(trainer: Any) -> None:
            seen.append(("start", trainer.number))

        @staticmethod
        @hookimpl
        def flowmap_step_end(iteration: int, logs: dict[str, float]) -> None:
            seen.append((iteration, "student/loss/diagonal" in logs))

        @staticmethod
        @hookimpl
        def flowmap_train_end(trainer: Any) -> None:
            seen.append(("end", trainer.number))

    run(evolve(RECIPE, stages=(STAGE, STAGE)), pm=manager(Plugin(), entry_points=False))
    stage = [(0, True), (1, True)]
    assert seen == [("start", 0), *stage, ("end", 0), ("start", 1), *stage, ("end", 1)]


def test_an_observer_that_fails_changes_nothing() -> None:
    class Plugin:
        @staticmethod
        @hookimpl
        def flowmap_step_end() -> None:
            torch.rand(3)
            raise RuntimeError("no network")

    with pytest.warns(UserWarning, match="raised RuntimeError"):
        watched = run(pm=manager(Plugin(), entry_points=False))
    assert torch.equal(outputs(watched), outputs(run()))


def test_a_failure_is_recorded_and_raised(tmp_path: Path) -> None:
    class Ends(MakesData):
        def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> TensorData:
            raise RuntimeError("no more clips")

    with pytest.raises(RuntimeError, match="no more clips"):
        run(RECIPE, Ends(), out=tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: no more clips")


def finished(path: Path) -> dict[str, Any]:
    run(out=path)
    return {"out": path, "resume": "never"}


@pytest.mark.parametrize(
    "recipe, options, message",
    [
        (evolve(RECIPE, data=None), {}, r"no data: give `data`, or a recipe with one, such as TensorData\(x, cond"),
        (RECIPE, {"data": [1, 2]}, r"data is a list: must have `batch\(index\)` and a length, or `load\(...\)`"),
        (RECIPE, {"resume": "maybe"}, "resume = 'maybe': must be 'auto', 'never' or 'restart'"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(
    recipe: Recipe, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        run(recipe, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_has_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    options = finished(tmp_path)
    with pytest.raises(RecipeError, match=r"resume = 'never', but .* has checkpoints: give an empty directory"):
        run(**options)


def test_a_batch_that_the_processes_cannot_share_names_those_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(STAGE.batch + 1))
    with pytest.raises(
        RecipeError, match=f"does not divide over {STAGE.batch + 1} processes: start 1.* or {STAGE.batch}"
    ):
        run()


VALUES: list[tuple[Callable[[], Any], str]] = [
    (lambda: Recipe(Toy(), ()), r".stages = .*: must have at least 1"),
    (lambda: Recipe(Toy(), (anyflow.forward(),)), r"Recipe.stages\[0\] is a Method: must be a Stage"),
    (lambda: Recipe("wan21", (STAGE,)), r".backbone = .*: must be a FlowMapSpec"),
    (lambda: Recipe(Toy(), (STAGE,), teacher="wan21"), r".teacher = .*: must be a FlowMapSpec"),
    (lambda: RECIPE.capped(0), "steps = 0: must be at least 1"),
    (lambda: Stage(anyflow.forward, 2), r".method = .*: must be a Method"),
    (lambda: evolve(STAGE, steps=0), r".steps = .*: must be .*>= 1"),
    (lambda: evolve(STAGE, batch=0), r".batch = .*: must be .*>= 1"),
    (lambda: evolve(STAGE, micro=0), r".micro = .*: must be .*>= 1"),
    (
        lambda: Stage(anyflow.on_policy(), 2, optimizer={"student": AdamW()}),
        r"has no entry for \['critic'\], which any",
    ),
    (lambda: AdamW(lr=0.0), r".lr = .*: must be .*> 0"),
    (lambda: AdamW(schedule="linear"), r".schedule = .*: must be '"),
    (lambda: AdamW(warmup=-1), r".warmup = .*: must be .*>= 0"),
    (lambda: AdamW(clip=0.0), r".clip = .*: must be .*> 0"),
    (lambda: Ema(decay=1.5), r".decay = .*: must be .*<= 1"),
    (lambda: Ema(start=-1), r".start = .*: must be .*>= 0"),
    (lambda: TensorData(torch.zeros(0, 1)), "TensorData.x is empty: there must be at least one sample"),
    (lambda: TensorData(torch.zeros(3, 1), {"a": torch.zeros(2)}), r"cond\['a'\] has 2 samples: x has 3"),
    (
        lambda: TensorData(torch.zeros(3, 1), {"a": torch.zeros(3)}, {"b": torch.zeros(1)}),
        r"null\['b'\]: cond has only a",
    ),
    (
        lambda: TensorData(torch.zeros(3, 1), {"a": torch.zeros(3, 2)}, {"a": torch.zeros(1, 3)}),
        r"is \(1, 3\): must be",
    ),
]


@pytest.mark.parametrize("make, message", VALUES)
def test_a_wrong_value_is_named_when_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_trial_is_the_same_recipe_with_fewer_steps() -> None:
    capped = evolve(RECIPE, stages=(evolve(STAGE, steps=50), STAGE)).capped(5)
    assert [stage.steps for stage in capped.stages] == [5, 2]
    assert RECIPE.capped(None) is RECIPE


def test_values_are_frozen() -> None:
    for value in (RECIPE, STAGE, STAGE.optimizer, anyflow.forward(), data()):
        with pytest.raises(AttributeError):
            value.seed = 3  # type: ignore[union-attr]


def test_a_bfloat16_run_trains_float32_adapters() -> None:
    """A step of 1e-5 on a weight of 1 is lost in bfloat16."""
    recipe = evolve(RECIPE, backbone=Toy(shared=True), stages=(evolve(STAGE, ema=None),))
    student = run(recipe, dtype=torch.bfloat16)
    assert {p.dtype for p in student.trained().values()} == {torch.float32}
    assert student.net.inp.weight.dtype == torch.bfloat16
    assert Rng.seeded(0).noise_like(student.net.inp.weight).dtype == torch.float32


@dataclass(frozen=True)
class Own:
    """An objective of somebody's own, which need not be a value of attrs."""

    weight: float
    solver: Callable[..., Any]

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student"})

    def __call__(self, nets: Any, batch: Any, rng: Any, shared: Any) -> Any:
        raise NotImplementedError


def test_settings_of_dataclasses_and_partials_tell_recipes_apart() -> None:
    """Or a run would go on with others than it began with."""

    def of(weight: float, order: int) -> str:
        own = Own(weight, partial(round, ndigits=order))
        stage = evolve(STAGE, method=Method("own", (Update("student", ((1.0, own),)),)))
        return digest(evolve(RECIPE, stages=(stage,)))

    assert of(1.0, 1) == of(1.0, 1)
    assert len({of(1.0, 1), of(2.0, 1), of(1.0, 2)}) == 3


def of_solver(solver: Callable[..., Any]) -> str:
    stage = evolve(STAGE, method=Method("own", (Update("student", ((1.0, Own(1.0, solver)),)),)))
    return digest(evolve(RECIPE, stages=(stage,)))


WIDTH = 3


def test_functions_without_a_name_of_their_own_are_told_apart_by_what_they_do_and_hold() -> None:
    def made(by: Any, more: int = 0) -> Callable[[float], Any]:
        def solver(x: float, *, also: int = more) -> Any:
            return by * x

        return solver

    def again(n: int) -> int:
        return again(n - 1) if n else 0

    apart: list[Callable[..., Any]] = [
        lambda x: x + 1,
        lambda x: x + 2,
        lambda x: x - 1,
        lambda x: x.real,
        lambda x: x.imag,
        lambda x, y=1: x + 1,
        lambda x, y=2: x + 1,
        lambda x: [y + 1 for y in x],
        lambda x: [y + 2 for y in x],
        lambda x: x in {"a", "b", "c"},
        lambda x: x in {"a", "b", "d"},
        made(1.0),
        made(2.0),
        made(1.0, 1),
        made(torch.ones(2)),
        made(torch.zeros(2)),
        made(Toy(width=8)),
        made(Toy(width=16)),
        made(made(1.0)),
        made(made(2.0)),
        made(torch.sin),
        made(torch.cos),
        made(Toy),
        made(Own),
        made(torch.nn.Linear(1, 1)),
        made(torch.nn.Linear(1, 2)),
        partial(lambda x: x, 1),
        partial(lambda x: -x, 1),
        round,
        abs,
        Toy(width=8).example,
        Toy(width=16).example,
        again,
    ]
    found = [of_solver(solver) for solver in apart]
    assert len({*found}) == len(apart)
    assert [of_solver(solver) for solver in apart] == found
    assert of_solver(made(1.0)) == of_solver(made(1.0)) and of_solver(made(Toy(8))) == of_solver(made(Toy(8)))


def test_what_a_lambda_reads_of_its_module_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of_solver(lambda x: WIDTH * x)
    monkeypatch.setitem(globals(), "WIDTH", 4)
    assert of_solver(lambda x: WIDTH * x) != before


def test_a_function_with_a_name_of_its_own_is_its_name() -> None:
    assert describe(of_solver) == f"{__name__}.of_solver"
    assert describe(lambda: 0)["name"].endswith("<lambda>")


def test_a_function_that_holds_what_nothing_tells_apart_is_refused() -> None:
    class Thing:
        pass

    thing = Thing()
    with pytest.raises(
        RecipeError, match=r"<lambda> holds thing, a Thing, of which two cannot be told apart: so a run"
    ):
        of_solver(lambda: thing)


def test_a_digest_of_functions_is_the_same_in_every_process() -> None:
    """Whatever the seed of its hashes."""
    code = """
from functools import partial
import torch
from flowmap.recipe import describe
def made(by):
    return lambda x: (by, x in {"a", "b", "c", "d"}, {"e", "f"}, lambda y: x < y)
print(describe([made({"p", "q", "r"}), made(torch.ones(2)), partial(made, 2), made(frozenset("xyz"))]))
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1 and "sha256" in said.pop()


def test_a_finished_run_that_is_opened_again_says_the_same_hash(tmp_path: Path) -> None:
    """Of a method whose critic has a head that only training builds."""
    made = cases.recipe(Wan21(), cases.adversarial(), steps=1)

    def said() -> str:
        distill(made, out=tmp_path, device="cpu")
        return str(json.loads((tmp_path / "status.json").read_text())["hash"])

    assert said() == said()


def test_a_run_does_not_go_on_in_another_precision(tmp_path: Path) -> None:
    distill(RECIPE, out=tmp_path, device="cpu", dtype=torch.float32, pm=QUIET)
    with pytest.raises(CheckpointError, match="is of another recipe"):
        distill(RECIPE, out=tmp_path, device="cpu", dtype=torch.bfloat16, pm=QUIET)
