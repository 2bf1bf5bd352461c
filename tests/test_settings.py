"""`--set`: a recipe with other values, by the values' own validators; and `flowmap recipe`, a recipe as a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from flowmap import AdamW, Ema, LatentFolder, VideoFolder
from flowmap.cli import main, recipes
from flowmap.cli.errors import UsageError
from flowmap.cli.settings import applied, setting
from flowmap.derivative import CentralDifference, OneSided
from flowmap.recipe import Recipe, RecipeError, digest
from flowmap.resume import differences
from tests import runs

FIELDS = ", ".join(f.name for f in attrs.fields(AdamW))


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return recipes.load("tiny_wan")


@pytest.mark.parametrize("name", recipes.known())
def test_every_recipe_takes_settings(name: str) -> None:
    """No network is built, and no file of the recipe is asked for."""
    recipe, told = recipes.load(name), list[str]()
    settings = ("stages.*.batch=8", "stages.0.steps=3", "stages.**.optimizer.**.lr=1e-6", "data=LatentFolder:data/x")
    changed = applied(recipe, (*settings, "seed=7", "data.bad=skip", "backbone.**.shift=2"), told)
    assert {stage.batch for stage in changed.stages} == {8} and changed.stages[0].steps == 3
    rates = {one.lr for stage in changed.stages for role in stage.method.trains if (one := stage.optimizer_of(role))}
    assert rates == {1e-6} and changed.seed == 7 and changed.backbone.shift == 2.0
    assert changed.data == LatentFolder("data/x", bad="skip")
    assert [stage.steps for stage in changed.stages[1:]] == [stage.steps for stage in recipe.stages[1:]]
    assert told[0] == f"stages.0.batch = 8, was {recipe.stages[0].batch}" and changed.name == recipe.name


GOOD = {
    "stages.0.optimizer.lr=1": ("stages.0.optimizer.lr", 1.0),
    "stages.0.steps=1e3": ("stages.0.steps", 1000),
    "stages.0.micro=4": ("stages.0.micro", 4),
    "stages.0.ema=none": ("stages.0.ema", None),
    "stages.0.ema=Ema:0.5": ("stages.0.ema", Ema(0.5)),
    "stages.1.optimizer.student.betas=0,0.5": ("stages.1.optimizer.student.betas", (0.0, 0.5)),
    "stages.0.optimizer=AdamW": ("stages.0.optimizer", AdamW()),
    "stages.0.optimizer.schedule=constant": ("stages.0.optimizer.schedule", "constant"),
    "evaluation=None": ("evaluation", None),
    "evaluation.seeds=5": ("evaluation.seeds", (5,)),
    "evaluation.prompts=a seven, an eight": ("evaluation.prompts", ("a seven", "an eight")),
    "dtype=bfloat16": ("dtype", "bfloat16"),
    "backbone.path=models/wan": ("backbone.path", "models/wan"),
    "data=VideoFolder:clips": ("data", VideoFolder("clips")),
    "stages.0.**.derivative=OneSided": ("stages.0.method.updates.0.terms.0.1.derivative", OneSided()),
    "stages.0.**.derivative=CentralDifference:0.0625": (
        "stages.0.method.updates.0.terms.0.1.derivative",
        CentralDifference(0.0625),
    ),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_text_is_the_value_that_the_field_takes(text: str, tiny: Recipe) -> None:
    where, value = GOOD[text]
    found = applied(tiny, (text,))
    for name in where.split("."):
        found = found[int(name) if name.isdecimal() else name] if not attrs.has(type(found)) else getattr(found, name)
    assert found == value and type(found) is type(value)


BAD = {
    "stages.0.optimizer.lrr=1": f"stages.0.optimizer has no field 'lrr': must be one of {FIELDS}; did you mean 'lr'?",
    "stages.0.optimizer.lr=0": "AdamW.lr = 0.0: must be > 0",
    "stages.0.optimizer.schedule=cosin": (
        "AdamW.schedule = 'cosin': must be 'constant' or 'cosine'; did you mean 'cosine'?"
    ),
    "stages.0.steps=1.5": "Stage.steps = 1.5: must be a whole number >= 1",
    "stages.0.batch=many": "Stage.batch = 'many': must be a whole number >= 1",
    "stages.4.batch=8": "stages has no field '4': must be '0' or '1'",
    "stage.0.batch=8": (
        "the recipe has no field 'stage': must be one of backbone, stages, teacher, critic, forward_teacher, data, "
        "evaluation, seed, dtype, save_dtype, offload; did you mean 'stages'?"
    ),
    "seed.x=1": "seed is 0 and has no fields",
    "stages.*.btch=8": "no field is called that; did you mean 'batch'?",
    "stages.**=8": "must end in a field's name",
    "data=LatentFoldr:x": (
        "there is no 'LatentFoldr': must be one of LatentFolder, LatentShards, Mixed, Prefetch, Sized, TensorData, "
        "VideoFolder; did you mean 'LatentFolder'?"
    ),
    "data=LatentFolder": "LatentFolder needs 'path'",
    "stages.0.method=meanflw": ("no method is called 'meanflw': there are {methods}; did you mean 'meanflow'?"),
    "name=x": (
        "the recipe has no field 'name': must be one of backbone, stages, teacher, critic, forward_teacher, data, "
        "evaluation, seed, dtype, save_dtype, offload"
    ),
}


def test_all_that_is_wrong_is_told_at_once_in_the_validators_words(tiny: Recipe) -> None:
    from flowmap.plugins import installed, origins

    methods = ", ".join(origins(installed(), "flowmap_methods"))
    with pytest.raises(UsageError) as caught:
        applied(tiny, [*BAD, "seed=3"])
    wrong = [f"  --set {text}: {said.format(methods=methods)}" for text, said in BAD.items()]
    assert str(caught.value).splitlines() == [f"{len(BAD)} errors:", *wrong]


def test_a_setting_is_a_field_and_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert setting("data=LatentFolder:a=b") == "data=LatentFolder:a=b"
    assert main(["distill", "--set", "seed=1", "quickstart"]) == 2
    assert "the recipe's name comes before --set" in capsys.readouterr().err


def test_a_run_knows_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with the same settings, and is refused with others, which are named."""
    monkeypatch.chdir(tmp_path)
    runs.write(Path("mine.py"), steps=4)
    run = Path("runs/mine")
    assert (
        main(["distill", "mine.py", "--set", "stages.0.optimizer.lr=0.5", "stages.*.steps=2", "--set", "seed=3"]) == 0
    )
    said = json.loads((run / "recipe.json").read_text())
    assert said["settings"] == ["stages.0.optimizer.lr=0.5", "stages.*.steps=2", "seed=3"]
    recipe = applied(recipes.load("mine.py"), said["settings"])
    assert said["digest"] == digest(recipe) and [*differences(recipe, run)] == []
    other = applied(recipes.load("mine.py"), ("stages.0.optimizer.lr=0.25", "stages.*.steps=2", "seed=3"))
    assert [*differences(other, run)] == ["stages.0.optimizer.lr was 0.5, is 0.25"]


@pytest.mark.parametrize("name", [*recipes.known(), "tiny_wan:rcm"])
def test_a_printed_recipe_is_the_same_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a directory of its own, with nothing beside it; its name is its file's."""
    monkeypatch.chdir(tmp_path)
    recipe = recipes.load(name)
    assert main(["recipe", name]) == 0
    Path("mine.py").write_text(capsys.readouterr().out)
    mine = recipes.load("mine.py")
    assert attrs.evolve(mine, name="", data=None, evaluation=None) == attrs.evolve(
        recipe, name="", data=None, evaluation=None
    )
    assert mine.name == "mine.py"
    try:
        expected = digest(recipe)
    except (RecipeError, ValueError, OSError):
        return  # it asks files that are not there
    assert digest(mine) == expected


def test_a_printed_recipe_is_python_without_flowmap_s_folder(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "flowmap", "recipe", "anyflow_wan22_a14b_low"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    (tmp_path / "mine.py").write_text(told)
    code = "import mine; print(len(mine.RECIPE.stages), mine.RECIPE.name)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["3"] and "from anyflow_wan22_a14b_high" not in told
