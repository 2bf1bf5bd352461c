"""What is written goes elsewhere: it names no folder of the machine that wrote it."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_wan21 import Lora, Wan21
from torch._inductor.runtime.cache_dir_utils import cache_dir

import flowmap
from flowmap import AdamW, FlowMap, Recipe, Stage, distill
from flowmap.export.blank import blank
from flowmap.export.manifest import Manifest
from flowmap.methods import anyflow
from flowmap.model import origin
from tests.export.test_backends import needs_compiler, needs_onnx

TELLTALE = "home_of_somebody"
FOLDERS = (TELLTALE, str(Path(torch.__file__).parent), str(Path(flowmap.__file__).parents[1]), cache_dir())
"""Of whom it is, of torch and of flowmap where they are installed, of what compilers keep, which has a user's name."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, a finished run on a pipeline in a folder with a telltale name."""
    home = tmp_path_factory.mktemp("some") / TELLTALE
    shutil.copytree(TINY_WAN, home / "base")
    stage = Stage(anyflow.forward(shift=1.0), steps=1, batch=2, optimizer=AdamW(lr=1e-3), ema=None)
    spec = Wan21(home / "base", lora=Lora(4, 8), text_tokens=12)
    recipe = Recipe(spec, (stage,), data=MovingDigits(count=4), name=str(home / "mine.py"))
    distill(recipe, out=home / "run")
    return home


class Small(FlowMap):
    """Compilers take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, z: Any, t: Any, r: Any, cond: Any, cache: Any = None) -> Any:
        return torch.nn.functional.silu(self.linear(z)) * t[:, None] + r[:, None]


def mentions(folder: Path) -> list[str]:
    """Every file under it, and every one in a zip there, that has one of `FOLDERS` in its bytes or its name."""
    return [f"{name}: {word}" for name, data in contents(folder) for word in FOLDERS if word.encode() in data]


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in (p for p in folder.rglob("*") if p.is_file()):
        yield file.name, str(file.relative_to(folder)).encode() + file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as opened:
                yield from ((f"{file.name}/{name}", opened.read(name)) for name in opened.namelist())


FORMS = (
    *("diffusers", "lora", "comfyui", "torch-export"),
    pytest.param("onnx", marks=needs_onnx),
    pytest.param("aoti", marks=needs_compiler),
)


@pytest.mark.parametrize("to", FORMS)
def test_no_form_names_a_folder_of_its_maker(to: str, made: Path) -> None:
    out, graphs = made / f"out_{to}", to in ("torch-export", "onnx", "aoti")
    given: dict[str, Any] = {"options": {"base": made / "base"}} if to in ("lora", "comfyui") else {}
    student: Any = made / "run"
    if graphs:
        given = {"example": (torch.zeros(2, 3), {}), "check": False}
        student = Small().eval().requires_grad_(False)
    flowmap.export(student, to, out, **given)
    assert not mentions(out)


def test_a_student_names_none(made: Path) -> None:
    """Its directory is what people publish; the run's other files are of the machine that it ran on."""
    assert not mentions(made / "run" / "student")
    assert json.loads((made / "run" / "student" / "lora" / "base.json").read_text())["path"] == "base"
    assert mentions(made / "run") and "home_of" in (made / "run" / "recipe.json").read_text()


def test_the_base_is_found_where_the_run_says(made: Path, tmp_path: Path) -> None:
    """The run's own file knows, and is not copied."""
    report = flowmap.export(made / "run", "lora", tmp_path / "out")
    assert report.worst is not None and report.manifest.config["base"]["path"] == "base"
    assert "Its base is base, lifted" in (tmp_path / "out" / "README.txt").read_text()


def test_names_of_an_older_pipeline_are_not_copied(made: Path, tmp_path: Path) -> None:
    old = tmp_path / TELLTALE / "older" / "student"
    shutil.copytree(made / "run" / "student", old)
    for name, key in NAMED:
        config = old / name
        config.write_text(json.dumps({**json.loads(config.read_text()), key: str(old)}))
    flowmap.export(old, "diffusers", tmp_path / "out", check=False)
    assert not mentions(tmp_path / "out")
    for name, key in NAMED:
        assert json.loads((tmp_path / "out" / name).read_text())[key] == "older/student"


NAMED = (("vae/config.json", "_name_or_path"), ("tokenizer/tokenizer_config.json", "name_or_path"))


@pytest.mark.parametrize(
    "student, out, source",
    [
        ("runs/a/student", "exported", "../runs/a/student"),
        ("runs/a", "exports/b/c", "../../../runs/a/student"),
        ("/somewhere/runs/a/student", "exported", "a/student"),
        ("runs/a/student", "/somewhere/exported", "a/student"),
        ("../runs/a/student", "exported", "a/student"),
        ("runs/x/../a/student", "exported", "../runs/a/student"),
        ("runs/a/student", "../exported", "a/student"),
    ],
)
def test_where_a_student_was(student: str, out: str, source: str) -> None:
    """Found again from a project's own folder, whatever is above it."""
    from flowmap.export import forms

    folder = Path(student) / "student" if student == "runs/a" else Path(student)
    assert forms.source(folder, Path(out)) == source


def test_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wan" / "base").mkdir(parents=True)
    assert origin("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert [origin(p) for p in ("wan/base", tmp_path / "wan" / "base", "/gone/base")] == ["base"] * 3
    assert origin("/gone/quickstart/student") == "quickstart/student"


def test_blanks_keep_the_length(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"a /home/me b /home/me/c \x00 /home/you")
    blank(file, ["/home/me", "/absent"])
    assert file.read_bytes() == b"a ........ b ......../c \x00 /home/you"
    (tmp_path / "empty").touch()
    blank(tmp_path / "empty", ["x"])


def test_the_manifest_names_no_way_from_an_absolute_one(made: Path, tmp_path: Path) -> None:
    flowmap.export(made / "run", "comfyui", tmp_path / "out", options={"base": str(made / "base"), "steps": 2})
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.source == "run/student" and manifest.options == {"base": "base", "steps": 2}
