"""From an image by the command line alone: clips, data, both stages, videos, an export; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flowmap_digits import TINY_WAN
from PIL import Image

from flowmap import backbone
from flowmap.cli import main
from flowmap.evaluation.previews import write_video

from .test_command_line import RECIPE, run
from .test_directories import made
from .test_images import CASES, picture

PROMPTS = ("seven", "three", "snowy", "rainy")
SIZE = "9x32x48"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Wan2.1 I2V, clips with captions, an image."""
    path = tmp_path_factory.mktemp("day")
    made("wan_i2v", path / "pipeline", case=CASES["wan_i2v"])
    (path / "clips").mkdir()
    for k, prompt in enumerate(PROMPTS):
        video = torch.rand(9, 3, 40, 60, generator=torch.Generator().manual_seed(k))
        write_video(video, path / f"clips/{prompt}.mp4")
        (path / f"clips/{prompt}.txt").write_text(prompt)
    (path / "prompts.txt").write_text("\n".join(PROMPTS))
    picture("wan_i2v")[0].save(path / "first.png")
    Image.new("RGB", (64, 64)).save(path / "wrong.png")
    return path


def refused(capsys: Any, *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2, arguments
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flowmap: ")]
    return str(line).removeprefix("flowmap: ")


def test_from_clips_to_an_export(there: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(there)
    run("data", "encode", "clips", "--backbone", "pipeline", "--size", SIZE, "--out", "data")
    run("data", "check", "data", "--backbone", "pipeline")
    said = capsys.readouterr().out
    assert "condition 'first' float32 3x8x4x6" in said and "condition 'image' float32 5x8" in said
    Path("mine.py").write_text(RECIPE.format(folder="pipeline", data="data", w=3.0))
    run("distill", "mine.py", "--out", "run")
    losses = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {entry["stage"] for entry in losses} == {0, 1} and not any(entry.get("skipped") for entry in losses)
    asked = ("--prompt", "seven", "--prompt", "three", "--steps", 1, 4, "--out", "seven.mp4")
    run("sample", "run/student", *asked, "--context", "first.png")
    assert Path("seven.mp4").stat().st_size > 100
    assert refused(capsys, "sample", "run/student", *asked) == (
        "this student begins with an image, and there is none: give one as context (--context FILE)"
    )
    assert refused(capsys, "sample", "run/student", *asked, "--context", "wrong.png") == (
        "context is 64x64, and the video 32x48: scale or cut it to that"
    )
    several = refused(capsys, "sample", "run/student", *asked, "--context", "clips/seven.mp4")
    assert several.endswith(" frames: this student begins with an image, one frame")
    run("export", "run/student", "--to", "torch-export", "--out", "exported", "--sizes", "frames=2:3:5")
    assert json.loads(Path("exported/parity.json").read_text())["worst"]["error"] < 1e-5
    run("sample", "exported", "--prompt", "seven", "--steps", 2, "--context", "first.png", "--out", "exported.mp4")


@pytest.mark.slow
def test_a_teacher_makes_data_of_prompts_and_images(there: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from flowmap.data import LatentShards

    monkeypatch.chdir(there)
    Path("images").mkdir()
    for k, _ in enumerate(PROMPTS):
        Image.new("RGB", (48, 32), (60 * k, 0, 0)).save(f"images/{k}.png")
    asked = (
        "data",
        "synth",
        "pipeline",
        "--prompts",
        "prompts.txt",
        "--size",
        SIZE,
        "--steps",
        2,
        "--out",
        "synthetic",
    )
    assert refused(capsys, *asked).startswith("pipeline begins with an image: give one a prompt ")
    assert refused(capsys, *asked, "--context", "clips") == (
        "context 'clips' has 0 images: must be an image, or a folder with 4, one a prompt"
    )
    run(*asked, "--context", "images")
    run("data", "check", "synthetic", "--backbone", "pipeline")
    batch = LatentShards.open(Path("synthetic")).batch([0, 1, 2, 3])
    codec = backbone("pipeline").codec(device=torch.device("cpu"), dtype=torch.float32)
    for k in range(4):
        image = torch.zeros(1, 3, 32, 48)
        image[:, 0] = 60 * k / 255
        for name, value in codec.encode_images(image, 9).items():
            torch.testing.assert_close(batch.cond[name][k : k + 1], value, rtol=0, atol=1e-5)
    assert {*batch.null} == {"text"}


def test_an_image_for_a_student_that_takes_none(there: Path, capsys: Any, tmp_path: Path) -> None:

    spec = backbone(TINY_WAN)
    cpu = torch.device("cpu")
    student = spec.build(frozenset({"student"}), device=cpu, dtype=torch.float32)["student"]
    spec.save(student, tmp_path / "student")
    facts = {"latent_shape": [3, 4, 4, 4], "guidance": 1.0, "sampler": "flow_map"}
    (tmp_path / "student" / "flowmap.json").write_text(json.dumps(facts))
    asked = ("sample", tmp_path / "student", "--prompt", "a seven", "--context", there / "first.png")
    assert refused(capsys, *asked) == (
        "this student makes all 3 latent frames at once and takes no context: one that makes them chunk after chunk "
        "does, and one from images to videos"
    )
