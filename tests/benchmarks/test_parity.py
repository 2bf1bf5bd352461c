"""Weights of two trainings: what differs is seen, and the committed differences are within 1e-5."""

import json

import pytest
import torch

from benchmarks.against import ROOT
from benchmarks.parity import CASES, STEPS, differences


def run(*off):
    """Two tensors of norm 5 and 1, of which training moved the first by 1; `off` what is added to each afterwards."""
    began = {"student a": torch.tensor([3.0, 3.0]), "student b": torch.tensor([1.0])}
    trained = {"student a": torch.tensor([3.0, 4.0]), "student b": torch.tensor([1.0])}
    return {"began": began, "trained": {n: p + d for (n, p), d in zip(trained.items(), off or (0, 0), strict=True)}}


def test_differences_are_of_weights_and_of_the_way_that_training_moved_them():
    assert differences(run(), run()) == {"weights": 0.0, "way": 0.0, "moved": pytest.approx(26**-0.5)}
    found = differences(run(), run(torch.tensor([0.0, 0.1]), torch.tensor([0.05])))
    assert found["weights"] == pytest.approx(0.05)  # of the smaller one, 0.02 of the other
    assert found["way"] == pytest.approx((0.1**2 + 0.05**2) ** 0.5)


def test_weights_that_do_not_begin_alike_are_an_error():
    other = run()
    other["began"]["student b"] = torch.tensor([1.0 + 1e-6])
    with pytest.raises(ValueError, match="do not begin with the same weights"):
        differences(run(), other)


def test_the_committed_differences_are_rounding():
    found = json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())
    assert found["steps"] == STEPS and list(found["results"]) == list(CASES)
    for case, its in found["results"].items():
        assert 0 < its["weights"] < 1e-5 and its["moved"] > 1e-3, case
