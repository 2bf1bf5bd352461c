"""Rewards with several training seeds: which recipe is run, and the means by hand."""

import json
import math
from pathlib import Path

import pytest
from attrs import evolve

from benchmarks import reward_seeds
from flowmap.cli import recipes


def test_what_is_run_is_the_recipe_from_another_student_with_another_seed():
    own, made = recipes.load("reward_student"), reward_seeds.rewarded(Path("elsewhere"), 2)
    assert (made.backbone.path, made.seed) == ("elsewhere", 2)
    ((_, matching),) = made.stages[0].method.updates[0].terms
    ((_, before),) = own.stages[0].method.updates[0].terms
    assert matching.scores.backbone == made.backbone and matching.scores.rewards == before.scores.rewards
    assert evolve(matching, scores=before.scores) == before
    assert evolve(made.stages[0], method=own.stages[0].method) == own.stages[0]
    assert evolve(made, backbone=own.backbone, stages=own.stages, seed=own.seed) == own
    assert reward_seeds.rewarded(Path("elsewhere"), 0, 1).stages[0].steps == 1


def test_means_and_errors_are_those_of_the_training_seeds():
    after = [{"ink": {"4": value}} for value in (0.12, 0.10, 0.11)]
    found = reward_seeds.summary({"ink": {"4": 0.10}}, after)["ink"]["4"]
    assert found["before"] == 0.10
    assert found["after"] == pytest.approx((0.11, 0.01 / math.sqrt(3)))
    assert found["change"] == pytest.approx((0.01, 0.01 / math.sqrt(3)))
    assert found["share"] == pytest.approx((0.1, 0.1 / math.sqrt(3)))


def test_a_trial_does_not_take_the_place_of_the_results(tmp_path):
    with pytest.raises(SystemExit, match="2"):
        reward_seeds.main(["--smoke", "--cache", str(tmp_path)])


def test_what_was_measured_is_written_and_told(tmp_path, capsys, monkeypatch):
    values = {"start": 0.5, "seed0": 0.25, "seed1": 0.75}
    monkeypatch.setattr(reward_seeds, "trained", lambda _, out: (out / "start", [out / "seed0", out / "seed1"]))
    monkeypatch.setattr(reward_seeds, "measured", lambda path, _: {"ink": {"1": values[path.name]}})
    reward_seeds.main(["--smoke", "--cache", str(tmp_path), "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["before"] == {"ink": {"1": 0.5}} and found["after"] == [{"ink": {"1": v}} for v in (0.25, 0.75)]
    assert found["mean_and_error"]["ink"]["1"]["after"] == [0.5, 0.25]
    assert capsys.readouterr().out.split() == ["ink", "1:", "0.500", "→", "0.500", "±", "0.250"]
