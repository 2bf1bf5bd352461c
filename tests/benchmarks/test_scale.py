"""Curves of cost at a size that says nothing, and the exponents of curves that are known."""

import json

import pytest

from benchmarks import scale


def curve(seconds, operations):
    return {n: {"seconds": seconds(n), "operations": operations(n)} for n in (1, 2, 4, 8)}


def test_an_exponent_is_that_of_the_power_law():
    found = scale.exponents(curve(lambda n: 3 * n**1.5, lambda n: 5 + n**2))
    assert found["seconds"] == {"all": pytest.approx(1.5), "last": pytest.approx(1.5)}
    assert found["operations"]["all"] < found["operations"]["last"] < 2


def test_all_of_it_minutely(tmp_path, capsys):
    scale.main(["--smoke", "--out", str(tmp_path)])
    curves = json.loads((tmp_path / "scale.json").read_text())["curves"]
    assert {*curves} == {*scale.CURVES, "processes"}
    assert capsys.readouterr().out.count("\n") == 2 + len(curves)
    grows = {name: its["exponents"]["operations"]["all"] for name, its in curves.items()}
    assert grows["processes"] == pytest.approx(-1, abs=0.05)  # a sample is on one of them
    assert grows["frames"] > 1 > grows["frames, causal"] > grows["adapters' rank"] > 0
