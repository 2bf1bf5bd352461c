"""A day with the command line alone: from a pipeline that diffusers made to a student, its clips and its exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flowmap_diffusers.rows import ROWS

from flowmap.cli import main

from .test_directories import CASES, made

RECIPE = """
from attrs import evolve
from flowmap import AdamW, LatentFolder, Recipe, Stage, backbone
from flowmap.methods import anyflow
from flowmap_lora import Lora

net, adam = evolve(backbone({folder!r}), lora=Lora(rank=4, alpha=4)), AdamW(lr=1e-3)
w = {{"guidance": {w}}}
RECIPE = Recipe(
    net,
    (
        Stage(anyflow.forward(velocity="teacher", **w), 2, batch=4, optimizer=adam),
        Stage(anyflow.on_policy(steps=(1, 2), teacher_guidance={w}, **w), 2, batch=4, optimizer=adam),
    ),
    data=LatentFolder({data!r}),
)
"""


FLOAT64 = ("cogvideox", "flux", "flux2", "motif_video", "skyreels_v2")
UNCLEAN = {
    **dict.fromkeys(FLOAT64, "float64 tensor: "),
    "z_image": "complex64 tensor: ",
    "qwen_image": "complex64 tensor: u.net.pos_embed.pos_freqs",
    "mochi": "higher-order operator: einsum (wrap_with_autocast)",
}
"""What engines would refuse in the class of diffusers; said in one sentence."""


def run(*arguments: object) -> None:
    assert main([str(a) for a in arguments]) == 0, arguments


FAMILIES = [name if name == "sana_video" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.mark.filterwarnings("ignore:var_mean")  # HunyuanVideo-1.5 has no image tokens, and normalises them
@pytest.mark.parametrize("family", FAMILIES)
def test_from_prompts_to_an_export(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder, case, row = made(family, tmp_path / "pipeline"), CASES[family], ROWS[family]
    frames = next((case.size[name] for name in ("num_frames", "frames") if name in case.size), 1)
    size = f"{frames}x{case.size['height']}x{case.size['width']}"
    Path("prompts.txt").write_text("seven\nthree\nsnowy\nrainy\n")
    run(
        "data",
        "synth",
        folder,
        "--prompts",
        "prompts.txt",
        "--size",
        size,
        "--steps",
        2,
        "--out",
        "data",
        "--null-prompt",
        "_____",
    )  # of as many tokens
    run("data", "check", "data", "--backbone", folder)
    w = 1.0 if "guidance" in row.example else 3.0
    Path("mine.py").write_text(RECIPE.format(folder=str(folder), data="data", w=w))
    run("distill", "mine.py", "--out", "run")
    losses = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {entry["stage"] for entry in losses} == {0, 1}
    assert not any(entry.get("skipped") for entry in losses)
    ending = "png" if row.image else "mp4"
    run("sample", "run/student", "--prompt", "seven", "--size", size, "--steps", 1, 4, "--out", f"seven.{ending}")
    assert Path(f"seven.{ending}").stat().st_size > 100
    if family in UNCLEAN:
        assert main(["export", "run/student", "--to", "torch-export", "--out", "exported"]) == 2
        assert f"flowmap: the graph has a {UNCLEAN[family]}" in capsys.readouterr().err
        return
    run("export", "run/student", "--to", "torch-export", "--out", "exported")
    assert json.loads(Path("exported/parity.json").read_text())["worst"]["error"] < 1e-5
