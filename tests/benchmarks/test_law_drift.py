"""Drift of the causal students, end to end at a size that proves nothing; what counts, by hand."""

import json
import math
from itertools import product

import pytest
import torch

from benchmarks import law_drift
from benchmarks.law_drift import SMOKED
from benchmarks.law_drift_jobs import LONGER, METRICS, _measured, _Real, groups_of
from benchmarks.law_jobs import SMOKE, costs
from benchmarks.law_rows import MODELS, NAMES
from flowmap.evaluation import Samples


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    made = tmp_path_factory.mktemp("drift")
    assert law_drift.main(["--smoke", "--out", str(made)]) == 0
    return made


def test_every_model_has_every_chunk_of_both_lengths(out):
    found = json.loads((out / "law_drift.json").read_text())
    for metric, longer, model in product(METRICS, LONGER, ("real", *SMOKED)):
        some = [r for r in found if (r["method"], r["longer"], r["metric"]) == (model, longer, metric)]
        assert [r["chunk"] for r in some] == list(range(5 * longer))
        assert [r["first_frame"] for r in some] == [0, *range(1, 10 * longer - 2, 2)]
        assert all(math.isfinite(r["mean"]) and r["se"] >= 0 for r in some)
    real = [r["mean"] for r in found if r["method"] == "real" and r["metric"] == "absolute_drift"]
    assert min(real) >= 0 and max(real) < 0.03  # a digit keeps its ink, however long it moves
    assert "of the first frame − 1 |, in percent: 15 chunks" in (out / "law_drift.md").read_text()
    assert (out / "history_grad.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_gradient_changed_is_the_difference_of_the_last_chunks(out):
    found = json.loads((out / "law_drift.json").read_text())
    told = json.loads((out / "law_drift_differences.json").read_text())
    assert len(told) == len(METRICS) * len(LONGER)  # of one pair
    for one in told:
        last = {
            r["method"]: r["mean"]
            for r in found
            if all(r[name] == one[name] for name in ("metric", "steps", "longer", "chunk"))
        }
        assert one["chunk"] == 5 * one["longer"] - 1
        assert one["mean"] == pytest.approx(last[one["method"]] - last[one["from"]], abs=1e-12)


def test_every_group_has_as_many_samples_and_a_prompt_s_are_apart():
    texts = [f"prompt {k % 16}" for k in range(64)]
    place = groups_of(texts)
    assert place.bincount().tolist() == [8] * 8
    assert all(len({*place[k::16].tolist()}) == 4 for k in range(16))


def test_stage_2_with_the_gradient_begins_as_the_one_without_and_is_as_long(tmp_path):
    with_, without = (NAMES[MODELS[name][1]] for name in ("history_grad", "stage_2"))
    a, b = (one.recipe() for one in (with_, without))
    assert a.stages[0] == b.stages[0] and a.stages[1] != b.stages[1]
    assert costs(with_, SMOKE, tmp_path) == costs(without, SMOKE, tmp_path)


def test_what_is_finished_is_not_done_again(out):
    before = {path: path.stat().st_mtime_ns for path in (out / "cache" / "drift").iterdir()}
    assert law_drift.main(["--smoke", "--out", str(out)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "cache" / "drift").iterdir()}


def test_clips_that_swell_and_clips_that_fade_do_not_cancel():
    videos = torch.ones(2, 3, 3, 32, 32) * torch.tensor([[1.0, 1.25, 1.5], [1.0, 0.75, 0.5]])[:, :, None, None, None]
    text = "a seven moving up quickly, bouncing"
    made = Samples(videos, videos, [text, text], None)
    everything = torch.ones(2, dtype=torch.bool)
    assert _measured(made, everything, (0, 1, 2, 3))["absolute_drift"] == pytest.approx([0.0, 0.25, 0.5])


def test_real_clips_are_as_long_as_is_asked():
    assert _Real(29)(["a seven moving up quickly, bouncing"], 0).shape == (1, 29, 3, 32, 32)


def test_what_is_wrong_is_said_before_anything_is_done(capsys):
    with pytest.raises(SystemExit):
        law_drift.main(["--smoke"])
    assert "--smoke needs --out" in capsys.readouterr().err
