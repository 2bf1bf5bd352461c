"""The command line: what it says to a wrong request, word by word, and that nothing has started by then."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flowmap.cli import COMMANDS, build_parser, main, recipes
from flowmap.cli.errors import HELD_BACK
from flowmap.training.store.directory import others
from flowmap.training.tensorboard import TensorBoard

NAMES = ", ".join(recipes.known())
THERE_ARE = ", ".join(COMMANDS)
OPTIONS = ", ".join(name for action in build_parser()[1]["distill"]._actions for name in action.option_strings)
ANYFLOW = "from flowmap.methods import anyflow\n"
REQUESTS = {
    "": f"no command: must be one of {THERE_ARE}",
    "distil quickstart": f"there is no command 'distil': must be one of {THERE_ARE}; did you mean 'distill'?",
    "distill": "the following arguments are required: RECIPE",
    "distill quickstrat": (
        f"there is no recipe 'quickstrat': give a Python file, or one of {NAMES}; did you mean 'quickstart'?"
    ),
    "distill mine.py": "recipe 'mine.py': there is no such file",
    "distill quickstart --step 2": (
        f"distill: there is no option '--step': must be one of {OPTIONS}; did you mean '--steps'?"
    ),
    "distill quickstart more": "distill takes no further argument, but there is 'more'",
    "distill quickstart --steps 0": "argument --steps: 0: must be a whole number, at least 1",
    "distill quickstart --steps two": "argument --steps: 'two': must be a whole number, at least 1",
    "distill quickstart --set batch": (
        "argument --set: 'batch': must be FIELD=VALUE, such as stages.0.batch=8; the recipe's name comes before --set"
    ),
    "distill quickstart --set stages.0.btch=8": (
        "--set stages.0.btch=8: stages.0 has no field 'btch': must be one of method, steps, batch, micro, optimizer, "
        "ema; did you mean 'batch'?"
    ),
    "recipe quickstrat": (
        f"there is no recipe 'quickstrat': give a Python file, or one of {NAMES}; did you mean 'quickstart'?"
    ),
    "distill quickstart --resume always": "argument --resume: 'always': must be auto or never",
    "sample nowhere --prompt x": "student 'nowhere': there is no such directory; `flowmap distill` makes one",
    "sample .": "no prompt: give --prompt TEXT, or --prompts FILE with one a line",
    "sample . --prompts nowhere.txt": "prompts 'nowhere.txt': there is no such file",
    "sample . --prompt x --vbench a --out b": "--vbench DIR and --out are both where samples go: give one of them",
    "sample . --prompt x --samples 2": "--samples is for a directory, a file each, and sample.mp4 is one file",
    "sample . --prompt x --steps 1 4 --out b": "--steps 1 4: a directory has samples of one number of steps",
    "sample . --prompt x --fps 0": "argument --fps: 0: must be a number, above 0",
    "sample . --prompt x --size 9x32": "argument --size: '9x32': must be frames x height x width, such as 9x32x32",
    "sample . --prompt x --out x.avi": "argument --out: 'x.avi': must end in .mp4, .gif or .png, or be a directory",
    "sample . --prompt x --context x.avi": "argument --context: 'x.avi': must end in .png, .jpg, .mp4, .mov, .mkv, "
    ".webm or .gif",
    "sample . --prompt x --context x.png": "context 'x.png': there is no such file",
    "sample . --prompt x --seed -1": "argument --seed: -1: must be a whole number, at least 0",
    "data": "data: no task: must be one of synth, encode, check",
    "status nowhere": "run 'nowhere': there is no such directory; `flowmap distill` makes one",
    "curve nowhere": "run 'nowhere': there is no recipe.json in it, so it is no run directory",
    "cite quickstrat": (
        "there is no recipe or method 'quickstrat': give a name from `flowmap plugins`, or a Python file; did you mean "
        "'quickstart'?"
    ),
    "cite aap": (
        "there is no recipe or method 'aap': give a name from `flowmap plugins`, or a Python file; did you mean 'aapt'?"
    ),
    "cite nowhere.py": "recipe 'nowhere.py': there is no such file",
}
RECIPES = {
    "X = 1": "mine.py defines no recipe: it needs RECIPE = Recipe(...) at the top level",
    "from nowhere import RECIPE": "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere'",
    "from math import *": "mine.py defines no recipe: it needs RECIPE = Recipe(...) at the top level",
    "recipe = 1": "mine.py: recipe is of type int: must be a Recipe",
    "RECIPE = 1": "mine.py: RECIPE is of type int: must be a Recipe",
    "RECIPE = (1": "mine.py, line 1: '(' was never closed",
    "import flowmap_nowhere\nRECIPE = 1": ("mine.py, line 1: ModuleNotFoundError: No module named 'flowmap_nowhere'"),
    "from flowmap import AdamW\nRECIPE = AdamW(\n    lrr=1e-3)": (
        "mine.py, line 2: AdamW has no field 'lrr' (= 0.001): must be one of lr, betas, weight_decay, warmup, "
        "schedule, floor, clip; did you mean 'lr'?"
    ),
    "from flowmap import AdamW\nRECIPE = AdamW(lr=0)": "mine.py, line 2: AdamW.lr = 0: must be > 0",
    "from flowmap import AdamW\nRECIPE = AdamW(schedule='cosin')": (
        "mine.py, line 2: AdamW.schedule = 'cosin': must be 'constant' or 'cosine'; did you mean 'cosine'?"
    ),
    ANYFLOW + "RECIPE = anyflow.forward(gidance=3.0)": (
        "mine.py, line 2: forward has no field 'gidance' (= 3.0): must be one of shift, guidance, drop, h, diagonal, "
        "edge, velocity, parity, within; did you mean 'guidance'?"
    ),
    ANYFLOW + "RECIPE = anyflow.forward(diagonal=0.8, edge=0.5)": (
        "mine.py, line 2: forward.diagonal + edge = 1.3: the shares must not sum to more than 1"
    ),
    ANYFLOW + "RECIPE = anyflow.forward(guidance=0.5)": "mine.py, line 2: forward.guidance = 0.5: must be >= 1",
}
BASE = """
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_wan21 import Wan21
from flowmap import Recipe, Stage
from flowmap.methods import anyflow
"""
STAGES = "stages=(Stage(anyflow.forward(), steps=1),)"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused request leaves on the error stream, without the program's name."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flowmap: ") and err.count("\n") == 1
    return err.removeprefix("flowmap: ").strip()


@pytest.mark.parametrize("request_, message", REQUESTS.items(), ids=REQUESTS)
def test_a_wrong_request(request_: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert said(capsys, *request_.split()) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text, message", RECIPES.items(), ids=[text.splitlines()[-1] for text in RECIPES])
def test_a_wrong_recipe(text: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("mine.py").write_text(text)
    assert said(capsys, "distill", "mine.py") == message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["distill", "cite"])
def test_a_recipe_is_read_the_same_by_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("RECIPE = 1")
    assert said(capsys, command, "mine.py") == "mine.py: RECIPE is of type int: must be a Recipe"


@pytest.mark.parametrize(
    "recipe, message",
    [
        (
            f"Recipe(Wan21('/nowhere/wan'), {STAGES}, data=MovingDigits(4))",
            "Wan21.path = '/nowhere/wan': has no model_index.json; must be the directory of a diffusers pipeline, or a "
            "hub id such as 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'",
        ),
        (
            f"Recipe(Wan21(TINY_WAN, pretrained=False), {STAGES})",
            "no data: give `data`, or a recipe with one, such as TensorData(x, cond, null)",
        ),
        (
            f"Recipe(Wan21(TINY_WAN, pretrained=False), {STAGES}, data=4)",
            "mine.py, line 8: Recipe.data is an int: must have `batch(index)` and a length, or `load(...)`",
        ),
    ],
)
def test_a_recipe_that_cannot_be_run(recipe: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(f"{BASE}\nRECIPE = {recipe}\n")
    assert said(capsys, "distill", "mine.py") == message
    assert not Path("runs").exists()


def told(capsys: pytest.CaptureFixture[str], text: str) -> list[str]:
    """The errors in a recipe, without its name."""
    Path("mine.py").write_text(f"{BASE}\n{text}\n")
    assert main(["distill", "mine.py"]) == 2
    lines = capsys.readouterr().err.removeprefix("flowmap: ").splitlines()
    return [line.partition(": ")[2] for line in (lines if len(lines) == 1 else lines[1:])]


def test_all_that_is_wrong_is_told_at_once_whatever_is_wrong_within(capsys: pytest.CaptureFixture[str]) -> None:
    """What holds a broken value is judged by its other fields."""
    assert told(
        capsys,
        "stage = Stage(anyflow.forward(shift=0, guidance=0.5), steps=0, batch=-1)\n"
        "RECIPE = Recipe(Wan21(TINY_WAN, shift=-1), (stage,), data=MovingDigits(0), seed=-4, dtype='half', nme='x')",
    ) == [
        "forward.shift = 0: must be > 0",
        "forward.guidance = 0.5: must be >= 1",
        "Stage.steps = 0: must be >= 1",
        "Stage.batch = -1: must be >= 1",
        "Wan21.shift = -1: must be > 0",
        "MovingDigits.count = 0: must be >= 1",
        "Recipe has no field 'nme' (= 'x'): must be one of backbone, stages, teacher, critic, forward_teacher, data, "
        "evaluation, seed, dtype, save_dtype, name, settings, offload; did you mean 'name'?",
        "Recipe.seed = -4: must be >= 0",
        "Recipe.dtype = 'half': must be 'float32' or 'bfloat16'",
    ]


@pytest.mark.parametrize(
    "fields, errors",
    [
        ("shift=-1, text_tokens=12", ["Wan21.shift = -1: must be > 0"]),
        ("text_length=0, text_tokens=12", ["Wan21.text_length = 0: must be >= 1"]),
        ("text_length='x', text_tokens=12", ["Wan21.text_length = 'x': must be a whole number >= 1"]),
        ("text_length=4, text_tokens=12", ["Wan21.text_tokens = 12: must be at most text_length, 4"]),
    ],
)
def test_a_validator_of_two_fields_is_silent_where_the_other_is_wrong(
    fields: str, errors: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, f"RECIPE = Recipe(Wan21(TINY_WAN, {fields}), {STAGES})") == [*errors]


def test_a_run_does_not_go_among_other_things(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("mine.py").write_text(
        f"{BASE}\nRECIPE = Recipe(Wan21(TINY_WAN, pretrained=False), {STAGES}, data=MovingDigits(4))\n"
    )
    Path("photos").mkdir()
    Path("photos/cat.png").touch()
    assert said(capsys, "distill", "mine.py", "--out", "photos") == (
        "out = photos: holds other things, such as 'cat.png': give one that is empty or not there yet"
    )
    assert [*Path("photos").iterdir()] == [Path("photos/cat.png")]


@pytest.mark.parametrize(
    "names, found",
    [
        ([], None),
        (["run.log", "slurm-1.out", ".hidden"], None),
        (["checkpoints", "metrics.jsonl"], None),
        (["index.json"], "index.json"),
        (["run.log", "thesis.tex"], "thesis.tex"),
        (["recipe.json", "thesis.tex"], None),
        ([".lock", "thesis.tex"], None),
    ],
)
def test_what_may_lie_where_a_run_goes(names: list[str], found: str | None) -> None:
    Path("out").mkdir()
    for name in names:
        (Path("out") / name).touch()
    assert others(Path("out")) == found and others(Path("nowhere")) is None


def test_a_method_that_there_is_not_and_one_of_a_single_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "distill", "quickstart", "--method", "rmc").startswith(
        "no method for a whole recipe is called 'rmc': there are aapt, apt, "
    )
    assert said(capsys, "distill", "quickstart:anyflow_forward").startswith(
        "the method 'anyflow_forward' is of one stage: put it into a Stage of a recipe file; for a whole recipe there "
        "are aapt, apt, "
    )


def test_no_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    request = ["data", "synth", "quickstart", "--prompts", "/dev/null", "--out", "data"]
    assert said(capsys, *request) == "/dev/null has no prompts: must have one a line"
    assert not Path("data").exists()


def test_a_tracker_whose_package_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'flowmap-distill\[tensorboard\]'"):
        TensorBoard(Path())


def test_of_several_processes_the_first_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for their end, and speak only if it does not come."""
    waited: list[float] = []
    monkeypatch.setattr("flowmap.cli.errors.time.sleep", waited.append)
    for rank, expected in (("0", []), ("1", [HELD_BACK])):
        monkeypatch.setenv("RANK", rank)
        assert said(capsys, "cite", "mine.py") == "recipe 'mine.py': there is no such file"
        assert waited == expected


def test_a_run_whose_recipe_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[]", ""):
        Path("recipe.json").write_text(text)
        message = said(capsys, "curve", ".")
        assert message.startswith("recipe.json is damaged (") and message.endswith(
            "say --recipe NAME or --recipe FILE.py"
        )


def test_a_file_is_no_run_directory(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        f"{BASE}\nRECIPE = Recipe(Wan21(TINY_WAN, pretrained=False), {STAGES}, data=MovingDigits(4))\n"
    )
    assert said(capsys, "distill", "mine.py", "--out", "mine.py") == (
        "out = mine.py: is a file: must be a directory, or not exist yet"
    )


def test_an_unknown_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    message = said(capsys, "check", "wan2")
    assert message.startswith("no plugin knows the backbone 'wan2': give one of ")
    assert "far, far_14b, " in message and "wan21, wan21_14b, " in message


def test_a_run_whose_recipe_has_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.json").write_text("{}")
    assert said(capsys, "curve", ".") == "run '.': its recipe has no name: say --recipe NAME or --recipe FILE.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"example: flowmap {command}" in capsys.readouterr().out


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowmap.cli.recipes.find", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["cite", "quickstart"])


def test_the_traceback_of_a_wrong_request_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWMAP_TRACEBACK", "1")
    with pytest.raises(Exception, match="no such file"):
        main(["cite", "mine.py"])


@pytest.mark.parametrize("name", recipes.known())
def test_a_recipe_that_comes_with_flowmap_can_be_read(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    assert all(stage.steps == 2 for stage in recipe.capped(2).stages)


def test_a_recipe_beside_it_that_fails_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("base.py").write_text("X = 1\nimport nowhere\n")
    Path("mine.py").write_text("from base import RECIPE\n")
    assert said(capsys, "distill", "mine.py") == (
        "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere' (in base.py, line 2)"
    )


def test_a_recipe_can_build_on_another_beside_it() -> None:
    Path("first.py").write_text(f"{BASE}\nRECIPE = Recipe(Wan21(), {STAGES})\n")
    Path("second.py").write_text(
        "from attrs import evolve\nfrom first import RECIPE as R\nRECIPE = evolve(R, seed=7)\n"
    )
    recipe = recipes.load("second.py")
    assert (recipe.seed, recipe.name) == (7, "second.py")
    sys.modules.pop("first")
