"""How fast a run goes, what memory it takes, and where its time is spent."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from flowmap import Recipe, Stage, distill
from flowmap.methods import flow_matching
from flowmap.plugins import manager
from flowmap.training import pace
from flowmap.training.pace import MEMORY, SPEED, Pace
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
