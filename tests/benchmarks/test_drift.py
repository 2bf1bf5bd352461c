"""The drift benchmark from a run to its files, on a trial of the quickstart, which proves nothing about quality."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from attrs import evolve
from flowmap_digits.data import MovingDigits

from benchmarks import drift, drift_report
from benchmarks.drift_report import Value
from benchmarks.drift_run import FULL, SMOKE, Finished, RunError, edges
from flowmap import distill
from flowmap.cli import recipes
from flowmap.cli.errors import UsageError
from flowmap.training.store.checkpoint import CheckpointError
from tests.toys import FRAMES, Toy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations a stage."""
    out = tmp_path_factory.mktemp("run") / "quickstart"
    recipe = evolve(recipes.load("quickstart").capped(2), data=MovingDigits(count=32), evaluation=None)
    distill(recipe, out=out, device="cpu")
    return out


@pytest.fixture(scope="module")
def results(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "quickstart"
    drift.main([str(run), "--out", str(out), "--smoke"])
    return out


def test_every_line_has_every_chunk(results: Path) -> None:
    found = json.loads((results / "drift.json").read_text())
    lines: dict[tuple[str, str, int], list[int]] = {}
    for record in found["records"]:
        assert math.isfinite(record["mean"]) and record["std"] >= 0 and record["seeds"] == 2
        lines.setdefault((record["metric"], record["model"], record["steps"]), []).append(record["first_frame"])
    models = [*((m, n) for m in ("before", "after", "teacher") for n in SMOKE.steps), ("real", 0)]
    assert {*lines} == {(metric, *model) for metric in drift_report.METRICS for model in models}
    assert all(frames == [0, 1, 3, 5, 7] for frames in lines.values())
    assert {*drift.MEASURES} == {*drift_report.METRICS}


def test_before_and_after_are_the_ends_of_the_two_stages(run: Path, results: Path) -> None:
    """After: the student that the run wrote."""
    finished = Finished.of(run)
    nets = finished.networks(torch.device("cpu"))
    student = finished.recipe.backbone.load(run / "student", device=torch.device("cpu"), dtype=torch.float32)
    written = {name: p.detach() for name, p in student.named_parameters()}
    ends = []
    for number in (0, 1):
        finished.restore(nets, number)
        ends.append({name: p.detach().clone() for name, p in nets["student"].named_parameters()})
    assert all(torch.equal(ends[1][name], value) for name, value in written.items())
    assert any(not torch.equal(ends[0][name], value) for name, value in written.items())
    found = json.loads((results / "drift.json").read_text())["stage_2"]
    assert any(difference["mean"] != 0 for difference in found)


def test_real_clips_through_the_vae_hardly_drift(results: Path) -> None:
    found = json.loads((results / "drift.json").read_text())
    real = [r for r in found["records"] if r["model"] == "real" and r["metric"] == "absolute_drift"]
    assert max(r["mean"] for r in real) < 0.03


def test_the_tables_and_the_picture(results: Path) -> None:
    text = (results / "drift.md").read_text()
    assert "2 seeds × 3 samples of 16 held-out prompts" in text
    assert "| before stage 2, 1 step | " in text and "| real clips through the VAE | " in text
    assert "| signed drift | 2 | " in text
    assert (results / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_differences_are_taken_seed_by_seed_in_the_last_chunk() -> None:
    def value(model: str, seed: int, chunk: int, number: float) -> Value:
        return Value(model, 4, seed, chunk, 0, "signed_drift", number)

    values = [value("before", 0, 1, 1.0), value("before", 1, 1, 5.0), value("after", 0, 1, 0.5)]
    values += [value("after", 1, 1, 4.0), value("after", 0, 0, 100.0), value("before", 0, 0, 0.0)]
    assert drift_report.differences(values) == [
        {"metric": "signed_drift", "steps": 4, "chunk": 1, "mean": -0.75, "std": pytest.approx(0.125**0.5), "seeds": 2}
    ]


@pytest.mark.parametrize(
    "causal, latents, frames, expected",
    [
        (False, 5, 9, (0, 1, 3, 5, 7, 9)),  # all at once: a latent frame a chunk
        (False, 3, 9, (0, 1, 5, 9)),
        (True, 4, 7, (0, 3, 7)),  # chunks of two latent frames
    ],
)
def test_chunks_in_video_frames(causal: bool, latents: int, frames: int, expected: tuple[int, ...]) -> None:
    u = Toy(causal=causal).build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    assert FRAMES == 4
    assert edges(u, latents, frames) == expected


def test_a_run_that_cannot_be_measured_says_why(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"there is no recipe\.json in it, so it is no run directory"):
        Finished.of(tmp_path)
    said = json.loads((run / "recipe.json").read_text())
    for change, message in (
        ({"name": "quickstrat"}, "there is no recipe 'quickstrat'"),
        ({"name": "tiny_wan_teacher"}, "has one stage; there is no before and after"),
        ({"backbone": {}}, "is not the one of this run any more"),
    ):
        (tmp_path / "recipe.json").write_text(json.dumps(said | change))
        with pytest.raises((RunError, UsageError), match=message):
            Finished.of(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="has no checkpoint of stage 0"):
        drift.run(tmp_path, SMOKE)
    with pytest.raises(SystemExit):
        drift.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    assert "so it is no run directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_full_measurement_is_at_4_and_32_steps() -> None:
    assert FULL.steps == (4, 32) and len(FULL.seeds) >= 3
