"""The GPU benchmark's path through the code, on tiny networks."""

from __future__ import annotations

import json

import pytest

from benchmarks import large_step


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """Times are not looked at."""
    monkeypatch.setattr(large_step, "REPEATS", 1)


def test_tiny_cases_are_measured_written_and_planned(tmp_path):
    large_step.main(["--out", str(tmp_path), "--tiny", "--samples", "1", "--only", "stage 1, ours"])
    record = json.loads((tmp_path / "large_step.json").read_text())
    assert [case["student"] for case in record["cases"]] == ["bidirectional", "causal"]
    assert {case["outcome"] for case in record["cases"]} == {"measured"}
    assert record["cases"][1]["by_kind"].keys() == {"3 chunks", "6 chunks"}
    assert "mean nothing" in (tmp_path / "large_step.md").read_text()
    large_step.main(["--out", str(tmp_path), "--add-plan"])
    assert all(case["plan_bytes"] > 0 for case in json.loads((tmp_path / "large_step.json").read_text())["cases"])


def test_without_time_nothing_is_begun(tmp_path):
    large_step.main(["--out", str(tmp_path), "--tiny", "--minutes", "0", "--only", "bidirectional, stage 2, ours"])
    (case,) = json.loads((tmp_path / "large_step.json").read_text())["cases"]
    assert case["outcome"] == "no time left"


def test_a_case_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(large_step, "jumping", lambda method, jumps: 1 / jumps and method)
    large_step.main(["--out", str(tmp_path), "--tiny", "--samples", "1", "--only", "bidirectional, stage"])
    outcomes = {
        case["case"]: case["outcome"] for case in json.loads((tmp_path / "large_step.json").read_text())["cases"]
    }
    assert outcomes == {"stage 1": "ZeroDivisionError: division by zero", "stage 2": "measured"}
