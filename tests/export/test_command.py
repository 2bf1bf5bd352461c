"""`flowmap export`, and `flowmap sample` on what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from flowmap_digits import TINY_WAN

from flowmap.cli import main
from tests.export.students import shaken
from tests.export.test_api import DIGITS

TO = ["--to", "torch-export", "--sizes", "frames=5", "height=8", "width=8", "text=12"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student") / "student"
    DIGITS.save(shaken(DIGITS), out)
    return out


def test_export_and_sample(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TINY_WAN.is_dir()
    out = tmp_path / "out"
    assert main(["export", str(directory), *TO, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out / 'one_chunk.pt2'}" in said and "largest error beside the student: " in said
    asked = ["--prompt", "a one moving up slowly", "--size", "9x32x32", "--steps", "1", "3"]
    for source, name in ((directory, "a"), (out, "b")):
        assert main(["sample", str(source), *asked, "--out", str(tmp_path / f"{name}.png")]) == 0
    import imageio.v3 as imageio

    a, b = (imageio.imread(tmp_path / f"{name}.png").astype(int) for name in "ab")
    assert abs(a - b).max() <= 1
    assert main(["sample", str(out), *asked[:2], "--size", "9x64x32", "--out", str(tmp_path / "c.png")]) == 2
    assert "height of hidden_states is 16: this export was made for 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--to", "tensorrtt", "--out", "out"], "no exporter is called 'tensorrtt'"),
        (["--to", "onnx", "--out", "out", "--sizes", "frames"], "argument --sizes: 'frames': '': must be one size"),
        (["--to", "torch-export", "--out", "out", "--sizes", "height=7"], "no size is given for frames, width"),
        (["--to", "aoti", "--out", "out", "--device", "cuda"], "built on one, and there is none here"),
        (["--to", "onnx", "--out", "."], ".: is there already"),
        (["--to", "onnx"], "the following arguments are required: --to, --out"),
        (["--to", "onnx", "--out", "out", "--precision", "fp4"], "invalid choice: 'fp4'"),
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
