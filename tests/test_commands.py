"""Each command's way through, on a network of a few thousand random weights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from attrs import evolve, frozen

import flowmap
from flowmap import distill
from flowmap.cli import main, recipes
from flowmap.cli.curve import place
from flowmap.cli.needs import needs
from flowmap.derivative import OneSided
from flowmap.evaluation import QualityCurve
from flowmap.evaluation.records import Record
from flowmap.hookspecs import hookimpl
from flowmap.method import Method
from flowmap.methods import anyflow, meanflow
from flowmap.methods.citations import ANYFLOW, WAN
from flowmap.model import FlowMapSpec
from flowmap.objectives import Networks
from flowmap.plugins import collect, installed, manager, origins
from flowmap.testing.kit_helpers import Result, Results
from tests.test_students import code_of

RECIPE = """
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve
from flowmap_wan21 import Wan21

from flowmap import Recipe, Stage
from flowmap.methods import anyflow

CONFIG = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 32, "freq_dim": 32, "ffn_dim": 48, "num_layers": 1, "rope_max_seq_len": 64,
}
RECIPE = Recipe(
    backbone=Wan21(TINY_WAN, pretrained=False, config=CONFIG, lora=None, text_tokens=12, shift=3.0),
    stages=(Stage(anyflow.forward(shift=3.0), 4, batch=4), Stage(anyflow.on_policy(shift=3.0), 4, batch=4)),
    data=MovingDigits(count=16),
    evaluation=curve(steps=(1, 2), reference=3),
)
"""
PIPELINE = """
import sys
from diffusers import AnyFlowPipeline
pipeline = AnyFlowPipeline.from_pretrained(sys.argv[1])
video = pipeline("a seven moving up quickly", height=32, width=32, num_frames=9, num_inference_steps=2).frames
assert video.shape == (1, 9, 32, 32, 3) and 0 <= video.min() <= video.max() <= 1, video.shape
assert not any(name.startswith("flowmap") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished trial."""
    out = tmp_path_factory.mktemp("run") / "small"
    assert main(["distill", str(recipe), "--out", str(out), "--steps", "2"]) == 0
    return out


def records(out: Path) -> list[Record]:
    return [Record(**one) for one in json.loads((out / "evaluation" / "nfe.json").read_text())]


def test_a_run_leaves_everything_behind(run: Path) -> None:
    for name in (
        *("recipe.json", "env.json", "metrics.jsonl", "status.json", "plots/nfe.png", "samples/grid.png"),
        *("evaluation/nfe.json", "evaluation/nfe.csv", "evaluation/table.txt", "evaluation/manifest.json"),
        *("student/model_index.json", "student/README.md", "student/flowmap.json"),
    ):
        assert (run / name).stat().st_size > 0, name
    assert len(list((run / "samples").glob("*.mp4"))) == 5
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert {json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()} == {0, 1}


def test_the_records_are_of_teacher_and_student_at_every_number_of_steps(run: Path) -> None:
    found = records(run)
    assert {(r.model, r.steps, r.calls) for r in found} == {
        *(("teacher", n, 2 * n) for n in (1, 2, 3)),
        *(("student", n, n) for n in (1, 2)),
    }
    assert found[0].metric == "energy_distance" and found[0].better == "lower"
    assert {r.seeds for r in found} == {2}


def test_a_second_call_trains_and_judges_nothing(recipe: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written() -> dict[str, int]:
        kept = (p for p in run.rglob("*") if p.is_file() and p.parent != run and p.name != "README.md")
        return {str(path): path.stat().st_mtime_ns for path in kept}

    before = written()
    assert main(["distill", str(recipe), "--out", str(run), "--steps", "2"]) == 0
    assert written() == before
    out, err = capsys.readouterr()
    assert "evaluation" not in err and "stage" not in err
    assert f"flowmap: {run} is trained already, and is not trained again\n" in err
    assert "energy distance (lower is better)" in out
    assert f"{run / 'plots' / 'nfe.png'}" in out


def test_a_missing_evaluation_is_made_up_for(recipe: Path, run: Path) -> None:
    before = records(run)
    (run / "evaluation" / "manifest.json").unlink()
    (run / "plots" / "nfe.png").unlink()
    assert main(["distill", str(recipe), "--out", str(run), "--steps", "2"]) == 0
    assert (run / "plots" / "nfe.png").is_file()
    for a, b in zip(records(run), before, strict=True):
        assert a.mean == pytest.approx(b.mean, rel=1e-4, abs=1e-6), a


def test_another_recipe_leaves_the_run_as_it_is(recipe: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["distill", str(recipe), "--out", str(run)]) == 2
    assert "stages.0.steps was 2, is 4, but stage 1 has begun with what it ended with" in capsys.readouterr().err
    assert main(["distill", str(recipe), "--out", str(run), "--steps", "2", "--resume", "never"]) == 2
    assert "has checkpoints: give an empty directory" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_diffusers_alone_generates_with_the_student(run: Path) -> None:
    subprocess.run([sys.executable, "-c", PIPELINE, str(run / "student")], check=True, cwd=run)


def test_the_code_of_the_card_runs(run: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(code_of(run), namespace)
    assert len(namespace["video"]) == 9


def test_the_student_can_be_loaded(run: Path) -> None:
    student = flowmap.load(run / "student")
    assert isinstance(student, flowmap.FlowMap)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        flowmap.load(run / "nowhere")


@pytest.mark.usefixtures("pictures_as_for_users")
@pytest.mark.parametrize("suffix", [".png", ".mp4", ".gif"])
def test_sample_has_a_row_a_prompt_and_a_column_a_number_of_steps(run: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"made{suffix}"
    prompts = ["--prompt", "a seven moving up quickly", "--prompt", "an eight moving left slowly"]
    assert main(["sample", str(run / "student"), *prompts, "--steps", "1", "2", "4", "--out", str(out)]) == 0
    shape = iio.imread(out, plugin="pyav" if suffix == ".mp4" else "pillow").shape
    if suffix == ".png":  # a line for the steps, one for every prompt, and the frames side by side, twice as large
        assert shape == (32 + 2 * (32 + 64), 3 * (9 * 64 + 4) - 4, 3)
        return
    assert shape[-3:] == (32 + 2 * (32 + 12 * 32), 3 * (12 * 32 + 4) - 4, 3)


def test_sample_is_the_same_for_the_same_seed(run: Path, tmp_path: Path) -> None:
    made = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.png"
        main(
            [
                "sample",
                str(run / "student"),
                "--prompt",
                "a one moving up slowly",
                "--seed",
                f"{seed}",
                "--out",
                f"{out}",
            ]
        )
        made.append(out.read_bytes())
    assert made[0] == made[1] != made[2]


def test_a_teacher_is_not_sampled_as_a_student_is(capsys, tmp_path):
    from flowmap_digits import TINY_WAN

    assert main(["sample", str(TINY_WAN), "--prompt", "x", "--out", str(tmp_path / "x.png")]) == 2
    assert "is a diffusion model and no student" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_sample_names_the_sizes_that_there_are(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    request = ["sample", str(run / "student"), "--prompt", "x", "--out", str(tmp_path / "x.png")]
    assert main([*request, "--size", "5x16x24"]) == 0
    assert main([*request, "--size", "8x32x32"]) == 2
    assert capsys.readouterr().err == (
        "flowmap: 8x32x32 is no size of this model: frames must be 1 more than a multiple of 2, height and width "
        "multiples of 8\n"
    )


def test_a_student_that_makes_all_frames_at_once_says_so_to_an_image(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    iio.imwrite(tmp_path / "x.png", np.zeros((32, 32, 3), np.uint8))
    request = ["sample", str(run / "student"), "--prompt", "x", "--context", str(tmp_path / "x.png")]
    assert main([*request, "--out", str(tmp_path / "made.png")]) == 2
    assert capsys.readouterr().err == (
        "flowmap: this student makes all 5 latent frames at once and takes no context: one that makes them chunk after "
        "chunk does, and one from images to videos\n"
    )
    assert main([*request, "--size", "9x16x24"]) == 2
    assert "takes no context" in capsys.readouterr().err  # not that it is of another size, which is to no end
    assert not (tmp_path / "made.png").exists()


def test_curve_judges_again_with_other_steps(recipe: Path, run: Path, tmp_path: Path) -> None:
    source = recipe.read_text().replace("reference=3", "reference=3, samples=2, seeds=(5,)")
    other = tmp_path / "other.py"
    other.write_text(source)
    request = ["curve", str(run), "--recipe", str(other), "--steps", "4", "1", "--out", str(tmp_path / "curve")]
    assert main(request) == 0
    assert {r.steps for r in records(tmp_path / "curve")} == {1, 3, 4}
    assert not (tmp_path / "curve" / "student").exists()
    assert json.loads((tmp_path / "curve" / "evaluation" / "manifest.json").read_text())["seeds"] == [5]


def test_another_curve_goes_beside_the_runs_own(recipe: Path, run: Path, tmp_path: Path) -> None:
    """Nothing that was measured is replaced by something else."""
    own = evaluated(recipe)
    assert place(own, run, "small", None) == run  # the very same
    other = evolve(own, steps=(1,))
    assert place(other, run, "small", (1,)) == run / "curves" / "small_1"
    taken = run / "curves" / "small_1" / "evaluation"
    taken.mkdir(parents=True)
    assert place(other, run, "small", (1,)) == run / "curves" / "small_1_2"
    (taken / "manifest.json").write_text(json.dumps({"digest": other.digest()}))
    assert place(other, run, "small", (1,)) == run / "curves" / "small_1"
    shutil.rmtree(run / "curves")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    quick = tmp_path / "quick.py"
    quick.write_text(recipe.read_text().replace("reference=3", "reference=3, samples=2, seeds=(5,)"))
    assert main(["curve", str(run), "--recipe", str(quick), "--steps", "1"]) == 0
    assert {r.steps for r in records(run / "curves" / "quick_1")} == {1, 3}
    assert {file: file.read_bytes() for file in before} == before


def evaluated(recipe: Path) -> QualityCurve:
    """What the trial was judged by."""
    found = recipes.load(str(recipe)).capped(2).evaluation
    assert isinstance(found, QualityCurve)
    return found


def test_a_run_that_goes_on_says_from_where(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = recipes.load(str(recipe)).capped(2)
    with pytest.raises(ZeroDivisionError):
        distill(evolve(short, evaluation=Fails()), out=tmp_path)
    shutil.rmtree(tmp_path / "student")
    capsys.readouterr()
    distill(evolve(short, evaluation=None), out=tmp_path)
    said = capsys.readouterr().err
    at = "stage 1 (anyflow_on_policy), 2 of 2 iterations done"
    assert f"flowmap: {tmp_path} goes on from its checkpoint step_01_00000002: {at}\n" in said
    assert "preparing" not in said


@frozen
class Fails:
    def __call__(self, nets: Networks, backbone: FlowMapSpec, out: Path) -> None:
        raise ZeroDivisionError

    def written(self, out: Path) -> bool:
        return False

    def quick(self) -> Fails:
        return self


def test_curve_needs_a_student(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curve", str(tmp_path), "--recipe", str(recipe)]) == 2
    assert "there is no finished student in it" in capsys.readouterr().err


def test_plugins_says_where_a_name_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["wan21", "from", "wan21"] in lines
    assert ["anyflow_forward", "from", "core"] in lines and ["tensorboard", "from", "core"] in lines
    assert ["quickstart", "Distil", "a", "small"] in [line[:4] for line in lines]


def test_plugins_says_what_each_method_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--needs"]) == 0
    told = {k: v.strip() for k, _, v in (line.partition("  ") for line in capsys.readouterr().out.splitlines())}
    assert told.keys() == origins(installed(), "flowmap_methods").keys()
    assert told["anyflow_on_policy"] == (
        "trains student, critic; calls teacher; derivative CentralDifference; data: latents and conditions"
    )
    assert told["flow_matching"] == "trains teacher; data: latents and conditions"
    assert told["ayf_lmd"] == "trains student; calls teacher; derivative EndForwardMode; data: latents and conditions"
    assert told["dmd2"] == "trains student, critic; calls teacher; adds to the critic; data: latents and conditions"
    assert told["self_forcing"] == "trains student, critic; calls teacher; data: conditions alone"
    assert told["reward_nft"] == "needs scores="


def test_what_a_method_needs_is_its_own_value_s() -> None:
    on_data = "; data: latents and conditions"
    assert needs(lambda: meanflow.meanflow(derivative=OneSided())) == f"trains student; derivative OneSided{on_data}"
    taught = needs(lambda: anyflow.forward(velocity="teacher"))
    assert taught == f"trains student; calls teacher; derivative CentralDifference{on_data}"
    alone = needs(lambda: anyflow.on_policy(cotrain=0.0))
    assert alone == "trains student, critic; calls teacher; data: conditions alone"


def test_cite_prints_each_entry_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert out.count(ANYFLOW) == out.count(WAN) == 1


@pytest.mark.parametrize("name", sorted(collect(installed(), "flowmap_methods")))
def test_every_method_can_be_cited(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", name]) == 0
    out = capsys.readouterr().out
    entries = re.findall(r"@\w+\{(\w+),", out)
    assert entries and len(entries) == len(set(entries))


def test_a_method_is_cited_by_its_own_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "aapt"]) == 0
    out = capsys.readouterr().out
    assert all(number in out for number in ("2506.09350", "2501.08316", "2501.05441")) and "2605.13724" not in out
    assert main(["cite", "reward_mfa"]) == 0  # made of rewards
    assert "2609.37670" in capsys.readouterr().out


def test_a_method_of_others_that_must_be_given_something_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    pm = manager(Demanding())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowmap.plugins.installed", lambda: pm)
        assert main(["cite", "demanding"]) == 2
    assert "the method 'demanding' needs depth=: cite a recipe that has it" in capsys.readouterr().err


class Demanding:
    @hookimpl
    def flowmap_methods(self) -> Mapping[str, Callable[..., Method]]:
        return {"demanding": demanding}


def demanding(depth: int) -> Method:
    return anyflow.forward(h=depth)


def test_check_fails_when_a_check_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = Results([Result("samples_do_not_mix", "passed", ""), Result("it_exports", "failed", "complex numbers")])
    monkeypatch.setattr("flowmap.testing.check_backbone", lambda spec: found)
    assert main(["check", "wan21"]) == 1
    assert "failed   it_exports          complex numbers" in capsys.readouterr().out
    monkeypatch.setattr("flowmap.testing.check_backbone", lambda spec: Results(found[:1]))
    assert main(["check", "wan21"]) == 0
