"""Drift of the causal students, end to end at a size that proves nothing; what counts, by hand."""

import json
import math

import pytest
import torch

from benchmarks import law_drift
from benchmarks.law_drift import LONGER, MODELS, _drift, _Real
from flowmap.evaluation import Samples


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    made = tmp_path_factory.mktemp("drift")
    assert law_drift.main(["--smoke", "--out", str(made)]) == 0
    return made


def test_every_model_has_every_chunk_of_both_lengths(out):
    found = json.loads((out / "law_drift.json").read_text())
    for longer in LONGER:
        for model in ("real", *MODELS):
            some = [r for r in found if (r["method"], r["longer"]) == (model, longer)]
            assert [r["chunk"] for r in some] == list(range(5 * longer))
            assert [r["first_frame"] for r in some] == [0, *range(1, 10 * longer - 2, 2)]
            assert all(math.isfinite(r["mean"]) and r["se"] >= 0 and r["mean"] >= 0 for r in some)
    real = [r["mean"] for r in found if r["method"] == "real"]
    assert max(real) < 0.03  # a digit keeps its ink, however long it moves
    assert "## 15 chunks; training has 5" in (out / "law_drift.md").read_text()


def test_what_is_finished_is_not_done_again(out):
    before = {path: path.stat().st_mtime_ns for path in (out / "cache" / "drift").iterdir()}
    assert law_drift.main(["--smoke", "--out", str(out)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "cache" / "drift").iterdir()}


def test_clips_that_swell_and_clips_that_fade_do_not_cancel():
    videos = torch.ones(2, 3, 3, 4, 4) * torch.tensor([[1.0, 1.25, 1.5], [1.0, 0.75, 0.5]])[:, :, None, None, None]
    made = Samples(videos, videos, ["", ""], None)
    everything = torch.ones(2, dtype=torch.bool)
    assert _drift(made, everything, (0, 1, 2, 3)) == pytest.approx([0.0, 0.25, 0.5])


def test_real_clips_are_as_long_as_is_asked():
    assert _Real(29)(["a seven moving up quickly, bouncing"], 0).shape == (1, 29, 3, 32, 32)


def test_what_is_wrong_is_said_before_anything_is_done(capsys):
    with pytest.raises(SystemExit):
        law_drift.main(["--smoke"])
    assert "--smoke needs --out" in capsys.readouterr().err
