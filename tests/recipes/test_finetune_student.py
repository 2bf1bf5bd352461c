"""The fine-tuning recipe from a student's directory to the comparison of before and after, on few iterations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from safetensors.torch import load_file

from flowmap import Recipe, distill
from flowmap.cli import recipes
from flowmap.distill import RecipeError, evaluate
from flowmap.evaluation.curve import Bench
from flowmap.evaluation.records import Point, Record
from flowmap.training.ranks.networks import build

CPU = torch.device("cpu")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two iterations on a student that was lifted and never distilled."""
    full = recipes.load("finetune_student")
    lifted = evolve(full.backbone, path=str(TINY_WAN))
    student = tmp_path_factory.mktemp("earlier") / "student"
    lifted.save(lifted.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"], student)
    trial = full.capped(2)
    return evolve(
        trial,
        backbone=evolve(full.backbone, path=str(student)),
        data=evolve(full.data, count=32),
        evaluation=evolve(trial.evaluation, steps=(1, 2), reference=2),
    )


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "finetune_student"
    distill(recipe, out=out, device="cpu")
    return out


def records(out: Path) -> list[Record]:
    return [Record(**one) for one in json.loads((out / "evaluation" / "nfe.json").read_text())]


def test_the_student_has_learnt_and_the_one_before_is_as_it_was(recipe: Recipe, run: Path) -> None:
    before, after = load_file(f"{recipe.backbone.path}/{WEIGHTS}"), load_file(run / "student" / WEIGHTS)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert json.loads((run / "student" / "model_index.json").read_text())["_class_name"] == "AnyFlowPipeline"
    assert json.loads((run / "student" / "flowmap.json").read_text())["guidance"] == 3.0


def test_the_first_row_is_the_student_before(recipe: Recipe, run: Path) -> None:
    """Measured anew from its directory, jumping, with one call a step."""
    found = records(run)
    assert {(r.model, r.sampler, r.steps, r.calls) for r in found} == {
        (model, "flow_map", n, n) for model in ("teacher", "student") for n in (1, 2)
    }
    untouched = build(recipe, CPU, torch.float32)["student"]
    bench = Bench.of(recipe.evaluation, {"student": untouched}, recipe.backbone)
    for metric in recipe.evaluation.metrics[:-1]:
        seeds = [metric.measure(bench.made(Point("student", "flow_map", 2, 2), seed)) for seed in (0, 1)]
        (row,) = [r for r in found if (r.model, r.metric, r.steps) == ("teacher", metric.name, 2)]
        assert row.mean == pytest.approx(math.fsum(seeds) / 2, rel=1e-4), metric.name
    table = (run / "evaluation" / "table.txt").read_text()
    assert "  before, 1 call a step" in table and "  after, 1 call a step" in table
    assert (run / "samples" / "before_02_steps.mp4").is_file()


def test_it_can_be_judged_again(recipe: Recipe, run: Path, tmp_path: Path) -> None:
    evaluate(recipe, run, out=tmp_path, device="cpu")
    for a, b in zip(records(tmp_path), records(run), strict=True):
        assert a.mean == pytest.approx(b.mean, rel=1e-4, abs=1e-6), a


def test_without_a_student_nothing_starts_and_the_message_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"runs/quickstart/student': has no model_index\.json"):
        distill(recipes.load("finetune_student"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
