"""How fast a run goes, what memory it takes, and where its time is spent."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from attrs import evolve

from flowmap import Recipe, Stage, distill
from flowmap.methods import flow_matching
from flowmap.planning import Machine, plan
from flowmap.planning.operations import operations
from flowmap.plugins import manager
from flowmap.recipe import RecipeError
from flowmap.training import pace
from flowmap.training.pace import MEMORY, OPERATIONS, SHARE, SPEED, Pace, bound
from flowmap.training.run import TRACE, Run
from flowmap.training.store import metrics
from tests.toys import Toy, data


def test_samples_a_second_are_those_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    made = Pace(batch=8)
    for _ in range(5):
        made.step()
    now += 2.0
    assert made.read()[SPEED] == 20.0 and SPEED not in made.read()
    made.step()
    now += 4.0
    assert made.read()[SPEED] == 2.0
    assert SPEED not in Pace().read() and 0.05 < Pace().read()[MEMORY] < 1000


def test_operations_a_second_are_the_plans_and_their_share_is_of_a_known_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    known, unknown = (Pace(8, 2e15, bound(name)) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA Next"))
    for made in (known, unknown):
        made.step()
    now += 4.0
    assert known.read() | {MEMORY: 0} == {MEMORY: 0, SPEED: 2.0, OPERATIONS: 500.0, SHARE: pytest.approx(500 / 989)}
    assert SHARE not in (found := unknown.read()) and found[OPERATIONS] == 500.0
    names = ("NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA GH200 480GB", "NVIDIA L40S", None)
    assert [bound(name) for name in names] == [756.0, 312.0, None, 362.0, None]


def test_a_runs_operations_are_those_of_its_plan() -> None:
    recipe = Recipe(Toy(), (Stage(flow_matching.flow_matching(), 2, batch=4),))
    found = operations(recipe, data(), 2, torch.device("cuda"))
    assert found == (plan(evolve(recipe, data=data()), Machine(gpus=2)).stages[0].flops / 2,) and found[0] > 0
    assert operations(recipe, data(), 2, torch.device("cpu")) == ()


def test_a_run_without_a_plan_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RecipeError("this recipe equips networks with more than its backbone has, which has no plan yet")

    monkeypatch.setattr(sys.modules[operations.__module__], "plan", refused)
    recipe = Recipe(Toy(), (Stage(flow_matching.flow_matching(), 2, batch=4),))
    assert operations(recipe, data(), 2, torch.device("cuda")) == ()


def test_records_have_them_and_a_trace_is_written_of_as_many_iterations_as_asked(tmp_path: Path) -> None:
    recipe = Recipe(Toy(), (Stage(flow_matching.flow_matching(), 14, batch=4),))
    began = time.monotonic()
    distill(recipe, data(), out=tmp_path, device="cpu", pm=manager(entry_points=False), profile=3)
    most = 4 * 14 / 1e-3
    records = metrics.read(tmp_path / "metrics.jsonl")
    assert [r["iteration"] for r in records] == [0, 10, 13]
    assert all(0 < r[SPEED] < most and r[MEMORY] > 0 for r in records)
    assert sum(n * 4 / r[SPEED] for n, r in zip((1, 10, 3), records, strict=True)) < time.monotonic() - began
    events = json.loads((tmp_path / TRACE).read_text())["traceEvents"]
    steps = {e["name"] for e in events if e["name"].startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{n}" for n in (2, 3, 4)}
    assert any("aten::linear" in e["name"] for e in events) and any("Optimizer.step#AdamW" in e["name"] for e in events)


def test_a_number_of_iterations_below_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Run\.profile = -1: must be >= 0"):
        Run(None, profile=-1)
