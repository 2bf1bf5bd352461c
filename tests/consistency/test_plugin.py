"""The plugin: what it registers, recipes trained with its methods, and everything else without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flowmap_consistency
import pytest
import torch
from attrs import evolve, frozen
from flowmap_consistency import self_gradient_forcing
from flowmap_consistency.decoded import Decoded
from flowmap_consistency.scale import Scale
from flowmap_far import Far
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import AdamW, Ema, Recipe, Stage, TensorData, distill
from flowmap.cli import main
from flowmap.method import Method
from flowmap.methods import anyflow
from flowmap.plugins import PluginError, collect, manager, trained_by
from flowmap.rewards import Scores
from tests.toys import Toy, data

from .judges import toy

PM = manager(entry_points=False)
PM.register(flowmap_consistency, name="consistency")
METHODS, STAGES = collect(PM, "flowmap_methods"), collect(PM, "flowmap_stages")
MINE = {"causvid", "consistency", "consistency_training", "lcm", "rcm", "scm", "scm_training", "self_forcing"}
OPTIMIZER: Any = {"student": AdamW(1e-4, (0.0, 0.99)), "critic": AdamW(3e-4, (0.0, 0.99))}
RECIPE = Recipe(
    Toy(),
    (
        Stage(anyflow.forward(guidance=2.0), 40, batch=4, optimizer=AdamW(1e-3), ema=Ema(0.9, 2)),
        Stage(anyflow.on_policy(guidance=2.0), 3, batch=2, optimizer=OPTIMIZER, ema=Ema(0.8, 1)),
    ),
    data=data(8),
    name="toy",
)


def test_the_methods_are_registered() -> None:
    assert METHODS.keys() >= MINE | {"causvid_ode_init", "self_forcing_ode_init", "rcm_warmup"}
    assert STAGES.keys() >= MINE


@pytest.mark.parametrize("name", sorted(MINE))
def test_a_student_that_jumps_to_data_says_so_and_what_guidance_it_has(name: str) -> None:
    method: Method = METHODS[name]()
    assert method.sampler == "consistency"
    assert method.guidance == {"rcm": 5.0, "self_forcing": 4.0, "causvid": 4.5}.get(
        name, 1.0 if "training" in name else 3.0
    )


def test_the_scale_is_the_recipes() -> None:
    scale = Scale.of(RECIPE)
    assert (scale.shift, scale.guidance) == (1.0, 2.0)
    regression = scale.regression(METHODS["consistency"](), share=0.5)
    assert (regression.steps, regression.batch, regression.optimizer) == (20, 4, AdamW(1e-3))
    alternating = scale.alternating(METHODS["self_forcing"](), 5)
    assert (alternating.steps, alternating.batch, alternating.optimizer) == (15, 2, OPTIMIZER)


def test_without_a_critic_in_the_recipe_there_is_a_scale_too() -> None:
    stage = Scale.of(evolve(RECIPE, stages=RECIPE.stages[:1])).on_policy
    student, critic = stage.optimizer_of("student"), stage.optimizer_of("critic")
    assert student is not None and critic is not None
    assert (student.lr, critic.lr) == pytest.approx((1e-4, 3e-4))
    assert stage.batch == 4 and stage.steps == 6


def test_a_recipe_without_a_student_has_no_scale() -> None:
    with pytest.raises(ValueError, match="the recipe toy trains no student: there is no scale to take"):
        Scale.of(evolve(RECIPE, stages=(Stage(anyflow.teacher(), 1),)))


@pytest.mark.parametrize("name", sorted(MINE))
def test_a_recipe_can_be_trained_with_another_method(name: str) -> None:
    recipe = trained_by(RECIPE, name, PM)
    assert recipe.name == f"toy:{name}"
    student = [stage for stage in recipe.stages if "student" in stage.method.trains]
    assert student and recipe.result == "student"
    assert {stage.method.guidance for stage in student} == {1.0 if "training" in name else 2.0}
    distill(recipe.capped(2), device="cpu")


def test_windows_of_self_gradient_forcing_are_the_published_ones() -> None:
    """In frames sink + recent + the chunk that is made: 4 + 16 + 1, and 3 + 6 + 3."""
    found = {n: (n * own.sink, n * own.recent, n) for n, own in self_gradient_forcing.WINDOW.items()}
    assert found == {1: (4, 16, 1), 3: (3, 6, 3)}


def test_self_gradient_forcing_begins_with_a_diffusion_model() -> None:
    recipe = trained_by(RECIPE, "self_gradient_forcing", PM)
    assert [stage.method.name for stage in recipe.stages] == ["flow_matching", "self_gradient_forcing"]
    assert (recipe.stages[1].method.sampler, recipe.stages[1].method.guidance) == ("consistency", 2.0)
    assert "2607.20368" in recipe.stages[1].method.citations[0]
    distill(recipe.capped(1), device="cpu")


@frozen
class Bright:
    """A reward of latents, with a gradient."""

    name: str = "bright"
    differentiable: bool = True

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.flatten(1).mean(1)


def made(name: str) -> Method:
    rewarded = {"scores": Scores(None, ((1.0, Bright()),))} if name.startswith("reward") else {}
    return METHODS[name](**rewarded)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_says_truly_whether_it_learns_from_latents(name: str) -> None:
    """What is trained depends on the values of the data's latents if it says so, and else not in a single bit."""
    spec: Any
    teacher: Any
    method, spec, teacher, ours = made(name), toy(), toy(), data(8)
    if name == "parallel_decoding":  # of a network with blocks for its heads
        teacher = Wan21().tiny()
        z, cond = teacher.example(8)
        spec, ours = Decoded(teacher, heads=64), TensorData(z, dict(cond), teacher.null(cond))
    steps = 1 + max(update.every for update in method.updates)  # a student that learns of data through its critic
    recipe = Recipe(spec, (Stage(method, steps, batch=2, optimizer=AdamW(1e-2)),), teacher=teacher)
    other = evolve(ours, x=ours.x.flip(0) + 1)
    first, second = (distill(recipe, given, device="cpu").trained() for given in (ours, other))
    same = all(torch.equal(value, second[key]) for key, value in first.items())
    assert same != method.from_data


def small(spec: Any) -> Recipe:
    """A recipe of a tiny random network, at its own scale."""
    z, cond = spec.example(4)
    return evolve(RECIPE, backbone=spec, data=TensorData(z, dict(cond), spec.null(cond)))


@pytest.mark.parametrize("name", sorted(MINE))
def test_wan_is_trained_with_it(name: str) -> None:
    """Through its attention, Jacobian-vector products and all."""
    distill(trained_by(small(Wan21().tiny()), name, PM).capped(1), device="cpu")


@pytest.mark.parametrize("name", ["causvid", "self_forcing", "scm_training", "consistency_training"])
def test_a_causal_wan_is_trained_with_it(name: str) -> None:
    """Those that ask the teacher about whole videos, and those that ask none."""
    distill(trained_by(small(Far(attention="dense").tiny()), name, PM).capped(1), device="cpu")


@pytest.mark.parametrize("name", ["consistency", "scm", "rcm"])
def test_a_bidirectional_teacher_is_not_asked_about_chunks(name: str) -> None:
    with pytest.raises(ValueError, match="which makes all frames at once, about frames after a history"):
        distill(trained_by(small(Far(attention="dense").tiny()), name, PM).capped(1), device="cpu")


def test_an_unknown_method_is_an_error_that_lists_those_with_stages() -> None:
    with pytest.raises(PluginError, match=r"no method for a whole recipe is called 'rcn'.*did you mean 'rcm'"):
        trained_by(RECIPE, "rcn", PM)


FILE = """
from flowmap import Recipe, Stage
from flowmap.methods import anyflow
from tests.toys import Toy, data

RECIPE = Recipe(Toy(), (Stage(anyflow.forward(guidance=2.0), 6, batch=4),), data=data(8))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_the_command_line_trains_a_recipe_with_it(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["distill", str(recipe), "--method", "rcm", "--out", str(out), "--steps", "2"]) == 0
    told = (out / "student" / "README.md").read_text()
    assert "| 0 | rcm_warmup | 2 | 4 | student |" in told and "| 1 | rcm | 2 | 4 | critic, student |" in told
    assert "A consistency student" in told and "Guidance 2 is built in" in told
    assert "Any number of steps" not in told
    assert f'"name": "{recipe}:rcm"' in (out / "recipe.json").read_text()


def test_without_out_the_directory_names_recipe_and_method(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["distill", f"{recipe}:consistency", "--steps", "1"]) == 0
    assert (tmp_path / "runs" / "mine_consistency_trial" / "student").is_dir()


def test_a_recipe_with_a_method_is_cited(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "tiny_wan:rcm"]) == 0
    cited = capsys.readouterr().out
    assert "2510.08431" in cited and "2605.13724" not in cited


def test_the_command_line_names_an_unknown_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "tiny_wan", "--method", "rcn"]) == 2
    assert "did you mean 'rcm'" in capsys.readouterr().err


WITHOUT = """
import json, sys
from flowmap.cli import main, recipes
from flowmap.plugins import collect, installed
found = collect(installed(), "flowmap_methods")
assert {"anyflow_forward", "anyflow_on_policy", "finetune", "flow_matching", "meanflow"} <= {*found}, found
assert not {"rcm", "self_forcing"} & {*found}
assert not collect(installed(), "flowmap_stages")
assert main(["plugins"]) == 0 and main(["cite", "tiny_wan"]) == 0
others = [name for name, file in recipes.known().items() if "flowmap_consistency" not in file.read_text()]
assert len(others) > 10 and [recipes.load(name).result for name in others]
assert main(["distill", sys.argv[1], "--out", sys.argv[2], "--steps", "1"]) == 0
assert main(["distill", sys.argv[1], "--method", "rcm"]) == 2
assert "flowmap_consistency" not in sys.modules
"""


def test_without_the_plugin_everything_else_works(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWMAP_DISABLE_PLUGINS", "consistency")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    run = [sys.executable, "-c", WITHOUT, str(recipe), str(tmp_path / "run")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no method for a whole recipe is called 'rcm': there are none" in done.stderr
