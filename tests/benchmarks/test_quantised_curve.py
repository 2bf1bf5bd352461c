"""The curve on a base of few bits end to end, at a size that says nothing; differences by hand."""

import json
from pathlib import Path

import pytest
from attrs import evolve

from benchmarks import quantised_curve
from benchmarks.curves import interval
from benchmarks.law_jobs import SMOKE

BASES = {"float32", "int8"}


def test_it_is_told_and_goes_on_with_the_base_that_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantised_curve, "SMOKE", evolve(SMOKE, steps=(1,)))
    assert quantised_curve.main(["--smoke", "--out", str(tmp_path)]) == 0
    first, file = capsys.readouterr().out, tmp_path / "quantised_curve.json"
    found = json.loads(file.read_text())
    assert {*found["bases"]} == BASES and first.count("\n") == 2 + 3 * 3
    values = {name: found["bases"][name]["1"]["values"] for name in BASES}
    assert values["float32"] != values["int8"]  # the base is another one
    for metric, by_steps in found["differences"].items():
        assert by_steps["1"]["mean"] == pytest.approx(values["int8"][metric] - values["float32"][metric])
    before = found["bases"].pop("int8")
    file.write_text(json.dumps(found))
    monkeypatch.setattr(quantised_curve, "judged", lambda base, settings: before if base == "int8" else None)
    assert quantised_curve.main(["--smoke", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == first


def test_the_difference_and_its_error_are_those_of_groups_left_out_on_both_sides():
    one, other = (
        {"values": {"variety": whole}, "without": [{"variety": value} for value in without]}
        for whole, without in ((1.0, (1.1, 0.9, 1.0)), (0.7, (0.7, 0.6, 0.8)))
    )
    found = quantised_curve.apart(one, other, "variety")
    # the differences are .4, .3, .2: the sum of squares about .3 is .02, times 2/3
    assert found["mean"] == pytest.approx(0.3)
    assert found["se"] == pytest.approx((2 / 3 * 0.02) ** 0.5)
    assert found["interval"] == pytest.approx(interval(found["se"], 3))


def test_a_trial_does_not_take_the_place_of_the_results():
    with pytest.raises(SystemExit, match="2"):
        quantised_curve.main(["--smoke"])


def test_the_numbers_of_the_docs_are_those_that_were_measured():
    root = Path(__file__).parents[2]
    found = json.loads((root / "benchmarks" / "results" / "quantised_curve.json").read_text())
    large = (root / "docs" / "large.md").read_text()
    text = large.partition("| base | 1 step |")[2].partition("\n\n")[0]
    told = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines()[2:]}
    for name in BASES:
        assert told[name] == [f"{one['values']['energy_distance']:.3f}" for one in found["bases"][name].values()]
    apart = found["differences"]["energy_distance"].values()
    assert told["int8 − float32, 95 % interval"] == [f"{one['mean']:.3f} ± {one['interval']:.3f}" for one in apart]
    beyond = [n for n, one in found["differences"]["energy_distance"].items() if one["mean"] > one["interval"]]
    assert f"at {', '.join(beyond[:-1])} and {beyond[-1]} steps" in " ".join(large.split())
