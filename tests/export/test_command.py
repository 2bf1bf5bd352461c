"""`flowmap export`, and `flowmap sample` on what it wrote."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import imageio.v3 as imageio
import pytest
from flowmap_digits import TINY_WAN
from safetensors.torch import load_file, save_file

from flowmap.cli import build_parser, main
from flowmap.cli.export import ENGINES
from flowmap.export.errors import ExportError
from flowmap.export.manifest import MANIFEST, Manifest
from flowmap.export.spec import Asked
from flowmap.plugins import collect, installed
from flowmap.training.store import status
from tests.export.students import shaken
from tests.export.test_api import DIGITS

TO = ["--to", "torch-export", "--sizes", "frames=5", "height=8", "width=8", "text=12"]


@pytest.fixture(autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are given in a folder above all: an export by relative ways finds its student again."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


def here(path: Path) -> str:
    return os.path.relpath(path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student") / "student"
    DIGITS.save(shaken(DIGITS), out)
    return out


def test_export_and_sample(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TINY_WAN.is_dir()
    out = tmp_path / "out"
    assert main(["export", here(directory), *TO, "--out", here(out)]) == 0
    said = capsys.readouterr().out
    assert here(out / "one_chunk.pt2") in said and "largest error beside the student: " in said
    asked = ["--prompt", "a one moving up slowly", "--size", "9x32x32", "--steps", "1", "3"]
    for source, name in ((directory, "a"), (out, "b")):
        assert main(["sample", str(source), *asked, "--out", str(tmp_path / f"{name}.png")]) == 0
    a, b = (imageio.imread(tmp_path / f"{name}.png").astype(int) for name in "ab")
    assert abs(a - b).max() <= 1
    assert main(["sample", str(out), *asked[:2], "--size", "9x64x32", "--out", str(tmp_path / "c.png")]) == 2
    assert "--size: height is 64: this export was made for 32 pixels; leave --size out" in capsys.readouterr().err
    assert main(["sample", str(out), *asked[:2], "--size", "5x32x32", "--out", str(tmp_path / "c.png")]) == 2
    assert "frames of hidden_states is 3: this export was made for 5, in latents; leave" in capsys.readouterr().err
    long = " ".join(["a one moving up slowly"] * 4)
    assert main(["sample", str(out), "--prompt", long, "--out", str(tmp_path / "c.png")]) == 2
    said = capsys.readouterr().err
    assert "the prompt takes 22 text tokens, this export takes 12: shorten it, or" in said  # an end and padding too


@pytest.mark.parametrize("batch", ["1", "2:2:2"])
def test_more_prompts_than_an_export_takes_at_once(batch: str, directory: Path, tmp_path: Path) -> None:
    """In several calls, the last of them filled up; the same rows as of the student."""
    out = tmp_path / "out"
    assert main(["export", here(directory), *TO, f"batch={batch}", "--no-check", "--out", here(out)]) == 0
    prompts = [word for n in ("one", "two", "three") for word in ("--prompt", f"a {n} moving up slowly")]
    for source, name in ((directory, "a"), (out, "b")):
        asked = ["--size", "9x32x32", "--steps", "1", "2", "--out", str(tmp_path / f"{name}.png")]
        assert main(["sample", str(source), *prompts, *asked]) == 0
    a, b = (imageio.imread(tmp_path / f"{name}.png").astype(int) for name in "ab")
    assert a.shape == b.shape and abs(a - b).max() <= 1


@pytest.mark.parametrize("name", [*ENGINES, "fp8"])
def test_the_help_names_the_forms_that_have_an_option(name: str) -> None:
    told = re.sub(r"\s+", " ", build_parser()[1]["export"].format_help())
    listed = "onnx, tensorrt-rtx" if name == "fp8" else re.findall(r"--to ([\w, -]+)\)", ENGINES[name])[0]
    assert (name == "fp8" and "fp8 is of onnx and tensorrt-rtx" in told) or ENGINES[name] in told
    have = []
    for to, exporter in collect(installed(), "flowmap_exporters").items():
        try:
            exporter.check(Asked("fp8") if name == "fp8" else Asked(options={name: True}))
        except ExportError as error:
            if "has no option" in str(error) or "has no fp8" in str(error):
                continue
        have.append(to)
    assert have == listed.split(", ")


def test_a_run_and_its_student_are_one(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = directory.parent
    assert main(["export", here(run), *TO, "--no-check", "--out", here(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / (Manifest.read(tmp_path / "out").source or "")).resolve() == directory
    asked = ["--prompt", "a one", "--size", "9x32x32", "--steps", "1", "--out", str(tmp_path / "a.png")]
    for source in (run, directory):
        assert main(["sample", str(source), *asked]) == 0
    assert main(["export", "--plan", str(run), "--sizes", "frames=5", "height=8", "width=8"]) == 0
    assert main(["sample", str(run), *asked, "--encoders", str(run)]) == 2
    assert "--encoders is for an export" in capsys.readouterr().err


def test_an_export_whose_student_is_gone_or_another(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has neither text encoder nor VAE: those of its student are read, and of none that has others."""
    student, out, video = tmp_path / "student", tmp_path / "out", tmp_path / "a.png"
    shutil.copytree(directory, student)
    assert main(["export", here(student), *TO, "--no-check", "--out", here(out)]) == 0
    assert {*Manifest.read(out).encoders} == {"vae", "text"}
    student.rename(tmp_path / "moved")
    asked = ["sample", str(out), "--prompt", "a one", "--steps", "1", "--out", str(video)]
    capsys.readouterr()
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert "../student is not there: name a directory that has them with --encoders DIR" in said
    assert main([*asked, "--encoders", str(tmp_path / "moved")]) == 0  # of the size that it was made for
    assert main(["export", str(tmp_path / "moved"), *TO, "--no-check", "--out", str(tmp_path / "named")]) == 0
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "named"), *asked[2:]]) == 2  # of an absolute one there is the name alone
    assert "its student, and moved is not there: name a directory" in capsys.readouterr().err
    assert video.is_file()
    weights = tmp_path / "moved" / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({**state, (first := min(state)): state[first] + 1}, weights)
    video.unlink()
    assert main([*asked, "--encoders", str(tmp_path / "moved")]) == 2
    assert "its vae is not that of the student that" in capsys.readouterr().err and not video.exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--to", "tensorrtt", "--out", "out"], "no exporter is called 'tensorrtt'"),
        (["--to", "onnx", "--out", "out", "--sizes", "frames"], "argument --sizes: 'frames': '': must be one size"),
        (["--to", "torch-export", "--out", "out", "--sizes", "height=7"], "no size is given for frames, width"),
        (["--to", "tensorrt-rtx", "--out", "out"], "(--capability), of 7.5, 8.0"),
        (["--to", "tensorrt-rtx", "--out", "out", "--capability", "89"], "'89' (--capability): must be as 8.9"),
        (["--to", "aoti", "--out", "out", "--device", "cuda"], "built on one, and there is none here"),
        (["--to", "onnx", "--out", "."], ".: is there already"),
        (["--to", "torch-export", "--out", "out", "--sizes", "height=8"], "(--sizes frames=N width=N)"),
        (["--to", "aoti", "--out", "out", "--precision", "fp8"], "aoti has no fp8"),
        (["--to", "onnx"], "the following arguments are required: --out"),
        (["--out", "out"], "the following arguments are required: --to"),
        (["--refit", "nowhere", "--out", "out"], "export 'nowhere': there is no such directory; `flowmap export` make"),
        (["--plan", "--to", "comfyui"], "comfyui writes files and no graph: there is nothing to plan"),
        (["--to", "onnx", "--out", "out", "--precision", "fp4"], "invalid choice: 'fp4': must be one of"),
        (["--to", "diffusers", "--out", "out", "--compile"], "diffusers does not read compile"),
        (["--to", "lora", "--out", "out", "--steps", "8"], "lora has no option 'steps'"),
        (["--to", "onnx", "--out", "out", "--steps", "8"], "onnx has no option 'steps'"),
        (["--plan", "--out", "out"], "--out cannot be given with --plan, which writes nothing"),
        (["--plan", "--steps", "8"], "--steps cannot be given with --plan"),
        (["--plan", "--weight-streaming"], "--weight-streaming cannot be given with --plan"),
    ],
)
def test_a_wrong_request_is_a_sentence(
    arguments: list[str], said: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(directory), *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_student_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nowhere", *TO, "--out", "out"]) == 2
    assert "student 'nowhere': there is no such directory" in capsys.readouterr().err
    assert main(["export", "run/nowhere", "--plan"]) == 2
    assert "there is no directory 'run/nowhere', and no plugin knows the backbone" in capsys.readouterr().err


@pytest.mark.parametrize("file, said", [("status.json", "has not finished: it has"), ("manifest.json", "an export,")])
def test_what_is_no_student_is_named(file: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"status.json", "manifest.json"} == {status.FILE, MANIFEST}
    (path := tmp_path / "x").mkdir()
    (path / file).write_text("{}")
    asked = [["export", str(path), "--plan"], ["export", str(path), *TO, "--out", str(tmp_path / "out")]]
    asked += [["data", "check", str(tmp_path), "--backbone", str(path)]]
    asked += [["sample", str(path), "--prompt", "x"]] if file == "status.json" else []
    for arguments in asked:
        assert main(arguments) == 2
        assert said in (err := capsys.readouterr().err) and err.startswith(
            (f"flowmap: {path} is ", f"flowmap: {path}: is ")
        )
        assert "backbone" not in err and err.count("\n") == 1
