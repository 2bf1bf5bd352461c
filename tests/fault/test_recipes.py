"""R10: bad recipes. All that is wrong is said at once, by line, field, value, what is allowed and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from flowmap import AdamW, Recipe, Stage, distill
from flowmap.cli import main, recipes
from flowmap.data import LatentFolder
from flowmap.data.format import MADE_BY
from flowmap.methods import anyflow
from flowmap.plugins import manager
from flowmap.recipe import RecipeError
from tests.toys import Toy

pytestmark = pytest.mark.row("R10")
HEAD = """\
import torch
from attrs import evolve
from flowmap import AdamW, Ema, ModuleSpec, Recipe, Stage, TensorData
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.rollout import ConsistencySimulation, FlowMapBackwardSimulation
from flowmap.times import Diagonal, Triangle
"""
LINE = HEAD.count("\n") + 1
ADAMW = "must be one of lr, betas, weight_decay, warmup, schedule, floor, clip"
STAGE = "must be one of method, steps, batch, micro, optimizer, ema"
RECIPE = "must be one of backbone, stages, teacher, data, evaluation, seed, name"
DATA = "must have `batch(index)` and a length, or `load(...)`"
ROLES = "must be 'student', 'teacher' or 'critic'"

ONE = {  # what is wrong with the first line after HEAD
    "AdamW(lr=0)": "AdamW.lr = 0: must be > 0",
    "AdamW(lr='1e-3')": "AdamW.lr = '1e-3': must be a number > 0",
    "AdamW(lr=float('nan'))": "AdamW.lr = nan: must be > 0",
    "AdamW(lr=True)": "AdamW.lr = True: must be a number > 0",
    "AdamW(lrr=1e-3)": f"AdamW has no field 'lrr' (= 0.001): {ADAMW}; did you mean 'lr'?",
    "AdamW(betas=0.9)": "AdamW.betas = 0.9: must be two numbers, each at least 0 and below 1",
    "AdamW(betas=(0.9, 1.0))": "AdamW.betas = (0.9, 1.0): must be two numbers, each at least 0 and below 1",
    "AdamW(schedule='cosin')": "AdamW.schedule = 'cosin': must be 'constant' or 'cosine'; did you mean 'cosine'?",
    "AdamW(warmup=1.5)": "AdamW.warmup = 1.5: must be a whole number >= 0",
    "AdamW(floor=2)": "AdamW.floor = 2: must be <= 1",
    "Ema(decay=1.5)": "Ema.decay = 1.5: must be <= 1",
    "Ema(decay=-0.1)": "Ema.decay = -0.1: must be >= 0",
    "Ema(begin=3)": "Ema has no field 'begin' (= 3): must be one of decay, start",
    "Stage(anyflow.forward(), steps=0)": "Stage.steps = 0: must be >= 1",
    "Stage(anyflow.forward(), steps=2.5)": "Stage.steps = 2.5: must be a whole number >= 1",
    "Stage(anyflow.forward(), stpes=3)": f"Stage has no field 'stpes' (= 3): {STAGE}; did you mean 'steps'?",
    "Stage(anyflow.forward())": "Stage needs 'steps'",
    "Stage(anyflow.forward(), 2, batch=0)": "Stage.batch = 0: must be >= 1",
    "Stage(anyflow.forward(), 2, micro=0)": "Stage.micro = 0: must be >= 1",
    "Stage(anyflow.forward, 2)": "Stage.method = forward: must be a Method; call it: forward(...)",
    "Stage('anyflow', 2)": "Stage.method = 'anyflow': must be a Method",
    "Stage(anyflow.forward(), 2, ema=0.999)": "Stage.ema = 0.999: must be an Ema",
    "Stage(anyflow.forward(), 2, optimizer=1e-3)": (
        "Stage.optimizer = 0.001: must be an AdamW, or one by role, such as {'student': AdamW(...)}"
    ),
    "Stage(anyflow.forward(), 2, optimizer={'studnet': AdamW()})": (
        f"Stage.optimizer has an entry for 'studnet': {ROLES}; did you mean 'student'?"
    ),
    "Stage(anyflow.forward(), 2, optimizer={'student': 1e-3})": "Stage.optimizer['student'] = 0.001: must be an AdamW",
    "Stage(anyflow.on_policy(), 2, optimizer={'student': AdamW()})": (
        "Stage.optimizer has no entry for ['critic'], which anyflow_on_policy trains"
    ),
    "Recipe('wan21', ())": None,
    "Recipe(ModuleSpec(torch.nn.Linear(1, 1), time=None), Stage(anyflow.forward(), 2))": (
        "Recipe.stages is a Stage: must be a row of them, such as (Stage(...),)"
    ),
    "Recipe(ModuleSpec(torch.nn.Linear(1, 1), time=None), (anyflow.forward(),))": (
        "Recipe.stages[0] is a Method: must be a Stage"
    ),
    "Recipe(ModuleSpec(torch.nn.Linear(1, 1), time=None), (Stage(anyflow.forward(), 2),), data=4)": (
        f"Recipe.data is an int: {DATA}"
    ),
    "Recipe(ModuleSpec(torch.nn.Linear(1, 1), time=None), (Stage(anyflow.forward(), 2),), seed=0.5)": (
        "Recipe.seed = 0.5: must be a whole number >= 0"
    ),
    "Recipe(ModuleSpec(torch.nn.Linear(1, 1), time=None), (Stage(anyflow.forward(), 2),), evaluation=1)": (
        "Recipe.evaluation = 1: must be an Evaluator"
    ),
    "evolve(Stage(anyflow.forward(), 2), step=4)": (f"Stage has no field 'step' (= 4): {STAGE}; did you mean 'steps'?"),
    "anyflow.forward(gidance=3.0)": (
        "forward has no field 'gidance' (= 3.0): must be one of shift, guidance, drop, h, diagonal, edge, velocity, "
        "parity, within; did you mean 'guidance'?"
    ),
    "anyflow.forwrad()": (
        "AttributeError: module 'flowmap.methods.anyflow' has no attribute 'forwrad'; did you mean 'forward'?"
    ),
    "anyflow.forward(diagonal=0.8, edge=0.5)": (
        "forward.diagonal + edge = 1.3: the shares must not sum to more than 1"
    ),
    "anyflow.forward(velocity='taecher')": (
        "forward.velocity = 'taecher': must be 'data', 'teacher' or 'student'; did you mean 'teacher'?"
    ),
    "Diagonal(low=0.9, high=0.1)": "Diagonal.low = 0.9: must be below high = 0.1",
    "ConsistencySimulation((1.0, 0.5, 0.75))": (
        "ConsistencySimulation.times = (1.0, 0.5, 0.75): must decrease strictly from 1.0 and stay above 0"
    ),
    "FlowMapBackwardSimulation(steps=(0, 2))": (
        "FlowMapBackwardSimulation.steps = (0, 2): must name at least one budget, each at least 1, or (4, 2) of chunks"
    ),
    "Update('generator', ((1.0, print),))": f"Update.role = 'generator': {ROLES}",
    "Update('student', (print,))": "Update.terms[0] = a builtin_function_or_method: must be a pair (weight, objective)",
    "Method('mine', (anyflow.forward(),))": "Method.updates[0] = a Method: must be an Update",
    "TensorData(torch.zeros(3, 1), {'text': torch.zeros(2)})": "TensorData.cond['text'] has 2 samples: x has 3",
    "Stge()": "NameError: name 'Stge' is not defined; did you mean 'Stage'?",
    "int('three')": "invalid literal for int() with base 10: 'three'",
    "open('nowhere.txt')": "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.txt'",
}
ONE.pop("Recipe('wan21', ())")

SEVERAL = {
    "AdamW(lr=0, warmup=-1, clip='x')": (
        "line 8: AdamW.lr = 0: must be > 0",
        "line 8: AdamW.warmup = -1: must be >= 0",
        "line 8: AdamW.clip = 'x': must be a number > 0",
    ),
    "AdamW(lr=0, wramup=3)": (
        f"line 8: AdamW has no field 'wramup' (= 3): {ADAMW}; did you mean 'warmup'?",
        "line 8: AdamW.lr = 0: must be > 0",
    ),
    "anyflow.forward(guidance=0.5, drop=2.0)": (
        "line 8: forward.guidance = 0.5: must be >= 1",
        "line 8: forward.drop = 2.0: must be <= 1",
    ),
    "Recipe('wan21', ())": (
        "line 8: Recipe.backbone = 'wan21': must be a FlowMapSpec",
        "line 8: Recipe.stages = (): must have at least 1",
    ),
    """Recipe(
    backbone='wan21',
    stages=(
        Stage(anyflow.forward(), steps=0, optimizer=AdamW(lr=-1)),
        Stage(anyflow.on_policy(steps=()), 3, batch=0),
    ),
    sede=3,
)""": (
        "line 11: AdamW.lr = -1: must be > 0",
        "line 11: Stage.steps = 0: must be >= 1",
        "line 12: on_policy.steps = (): must name at least one budget, each at least 1, or (4, 2) of chunks",
        "line 12: Stage.batch = 0: must be >= 1",
        "line 8: Recipe has no field 'sede' (= 3): must be one of backbone, stages, teacher, critic, forward_teacher, "
        "data, evaluation, seed, dtype, save_dtype, name, settings, offload; did you mean 'seed'?",
        "line 8: Recipe.backbone = 'wan21': must be a FlowMapSpec",
    ),
    """0
fast = AdamW(lr=0)
slow = AdamW(lr=1e-4)
FIRST = Stage(anyflow.forward(), 10, optimizer=fast)
SECOND = Stage(anyflow.forward(), 0, optimizer=slow)
from flowmap import AdamWW
for i in range(2):
    Stage(anyflow.forward(), 1, AdamWW(lr=i))
def make(steps):
    return Stage(anyflow.forward(), steps, ema=0.9)
THIRD = make(3)
FIRST.steps = 3
1 / 0""": (
        "line 9: AdamW.lr = 0: must be > 0",
        "line 12: Stage.steps = 0: must be >= 1",
        "line 13: ImportError: cannot import name 'AdamWW' from 'flowmap'; did you mean 'AdamW'?",
        "line 17: Stage.ema = 0.9: must be an Ema",
        "line 20: ZeroDivisionError: division by zero",
    ),
}


GOOD = f"""{HEAD}
SPEC = ModuleSpec(torch.nn.Linear(1, 1), time=None)
RECIPE = Recipe(SPEC, (Stage(anyflow.forward(), 2),), data=TensorData(torch.zeros(2, 1)))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(text: str, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    """What is said to a recipe, a sentence a line; and nothing is there that was not before."""
    Path("mine.py").write_text(text)
    assert main(["distill", "mine.py", *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("flowmap: ") and "Traceback" not in err
    assert sorted(path.name for path in Path().iterdir() if path.name != "__pycache__") == ["mine.py"]
    first, *rest = err.removeprefix("flowmap: ").splitlines()
    if not rest:
        return [first]
    assert first == f"{len(rest)} errors:"
    return [line.strip() for line in rest]


@pytest.mark.parametrize("text, message", ONE.items(), ids=ONE)
def test_one_mistake(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(f"{HEAD}RECIPE = {text}\n", capsys) == [f"mine.py, line {LINE}: {message}"]


@pytest.mark.parametrize("text, messages", SEVERAL.items(), ids=["fields", "names", "inside", "two", "nested", "file"])
def test_several_mistakes(text: str, messages: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(f"{HEAD}RECIPE = {text}\n", capsys) == [f"mine.py, {message}" for message in messages]


def test_directories_that_lack_things_are_told_with_the_mistakes_of_stages(capsys: pytest.CaptureFixture[str]) -> None:
    """Three mistakes in stages, two parts of the data, the teacher's directory: one refusal, each with its line."""
    text = f"""{HEAD}
from flowmap import LatentFolder, Mixed
from flowmap_wan21 import Wan21
SPEC = ModuleSpec(torch.nn.Linear(1, 1), time=None)
UNUSED = LatentFolder("unused")
DATA = Mixed((
    LatentFolder("first"),
    LatentFolder("second"),
))
RECIPE = Recipe(
    SPEC,
    (
        Stage(anyflow.forward(guidance=0.5), 10),
        Stage(anyflow.forward(), 0),
        Stage(anyflow.forward(), 10, batch=0),
    ),
    teacher=Wan21(path="./nowhere/teacher"),
    data=DATA,
)
LATER = evolve(RECIPE, data=LatentFolder("third"))
"""
    wrong = ("Mixed((", "guidance=0.5", "forward(), 0)", "batch=0", "nowhere", "third")
    data, guidance, steps, batch, directory, third = (text[: text.index(part)].count("\n") + 1 for part in wrong)
    refusal = "holds no encoded data: index.json: No such file or directory"
    found = refused(text, capsys)
    (teacher,) = (said for said in found if "nowhere/teacher" in said)
    assert teacher.startswith(f"mine.py, line {directory}: Wan21.path = './nowhere/teacher': ")
    assert [said for said in found if said != teacher] == [
        f"mine.py, line {guidance}: forward.guidance = 0.5: must be >= 1",
        f"mine.py, line {steps}: Stage.steps = 0: must be >= 1",
        f"mine.py, line {batch}: Stage.batch = 0: must be >= 1",
        f"mine.py, line {data}: first {refusal}; {MADE_BY}",
        f"mine.py, line {data}: second {refusal}; {MADE_BY}",
        f"mine.py, line {third}: third {refusal}; {MADE_BY}",
    ]


@pytest.mark.parametrize("given", ["data=LatentFolder('nowhere')", "None, None, LatentFolder('nowhere')"])
def test_data_that_a_setting_replaces_are_no_mistake(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of data that only lie elsewhere on this machine nothing is told, and of the stages all that is wrong."""
    text = f"{HEAD}from flowmap import LatentFolder\nSPEC = ModuleSpec(torch.nn.Linear(1, 1), time=None)\n"
    text += f"RECIPE = Recipe(SPEC, (Stage(anyflow.forward(), 0),), {given})\n"
    place = f"mine.py, line {text.count(chr(10))}"
    stage = f"{place}: Stage.steps = 0: must be >= 1"
    folder = f"{place}: nowhere holds no encoded data: index.json: No such file or directory; {MADE_BY}"
    assert refused(text, capsys) == [stage, folder]
    assert refused(text, capsys, "--set", "data=LatentFolder:data/mine") == [stage]
    assert refused(text, capsys, "--set", "data.workers=0", "seed=1") == [stage, folder]


@pytest.mark.parametrize(
    "text, message",
    [
        ("RECIPE = (1", "mine.py, line 1: '(' was never closed"),
        (
            "import flowmap_nowhere\nRECIPE = 1",
            "mine.py, line 1: ModuleNotFoundError: No module named 'flowmap_nowhere'",
        ),
        ("RECIPE = 1\nraise SystemExit(3)", "mine.py, line 2: SystemExit: 3"),
        ("RECIPE = 1\ndef f(): return f()\nf()", None),
        ("RECIPE = 1\0", None),
        ("X = 1", "mine.py defines no recipe: it needs RECIPE = Recipe(...) at the top level"),
        ("RECIPE = 1", "mine.py: RECIPE is of type int: must be a Recipe"),
    ],
    ids=["syntax", "import", "exit", "recursion", "zero", "none", "type"],
)
def test_a_file_that_is_no_recipe(text: str, message: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    (said,) = refused(text, capsys)
    assert said == message if message else said.startswith("mine.py")


def test_what_two_values_together_make_wrong_is_said_at_once_too(tmp_path: Path) -> None:
    class Gone(Toy):
        def validate(self) -> None:
            raise ValueError(f"Gone.seed = {self.seed}: there is no such file")

    stage = Stage(anyflow.forward(), 2, batch=4, optimizer=AdamW(lr=1e-3))
    recipe = Recipe(Gone(seed=1), (stage,), teacher=Gone(seed=2), data=LatentFolder(tmp_path / "data"))
    with pytest.raises(RecipeError) as error:
        distill(recipe, out=tmp_path / "run", resume="maybe", dtype=float, pm=manager(entry_points=False))  # type: ignore[arg-type]
    assert error.value.errors == (
        "Gone.seed = 1: there is no such file",
        "Gone.seed = 2: there is no such file",
        f"{tmp_path / 'data'} holds no encoded data: index.json: No such file or directory; {MADE_BY}",
        "dtype = <class 'float'>: must be torch.float32 or torch.bfloat16",
        "resume = 'maybe': must be 'auto', 'never' or 'restart'",
    )
    assert str(error.value).startswith("5 errors:\n  Gone.seed = 1")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="there is no such file"):
        evolve(recipe, teacher=None).validate()


@pytest.mark.parametrize("request_", ["distill mine.py --method meanfow", "distill mine.py:meanfow"])
def test_a_method_that_there_is_not(request_: str, capsys: pytest.CaptureFixture[str]) -> None:
    _written(GOOD)
    assert main(request_.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("flowmap: no method for a whole recipe is called 'meanfow': there are ")
    assert err.endswith("; did you mean 'meanflow'?\n") and not Path("runs").exists()


@pytest.mark.parametrize("name", recipes.known())
def test_the_recipes_that_come_with_flowmap_have_none(name: str) -> None:
    assert isinstance(recipes.load(name), Recipe)


def test_nothing_is_said_of_a_good_one() -> None:
    assert recipes.load(str(_written(GOOD))).wrong() == ()


def _written(text: str) -> Path:
    Path("mine.py").write_text(text)
    return Path("mine.py")
