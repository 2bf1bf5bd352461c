"""What a run says of itself while it goes on: one bar, or a line now and then."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from attrs import field, frozen

from flowmap import AdamW, FlowMapSpec, Recipe, Stage, distill
from flowmap.atomic import write_json
from flowmap.cli.signs import lines
from flowmap.doing import counted, heard, part_of, tell
from flowmap.methods import anyflow
from flowmap.objectives import Networks
from flowmap.planning import plan
from flowmap.plugins import manager
from flowmap.training import progress
from flowmap.training.progress import Progress
from flowmap.training.store import status
from flowmap.training.store.lock import me
from tests import runs
from tests.toys import Toy, data

QUIET = manager(entry_points=False)


def test_the_line_has_lr_gradient_norm_and_a_smoothed_paired_error() -> None:
    made = Progress(speaks=False)
    made.stage(0, 2, "toy", 0, 10)
    made.step()
    for error in (9.0, 0.3, 0.2, 0.1):
        made.paired(error)
    logs = {"student/loss/diagonal": 0.25, "student/lr": 3e-4, "student/gradient_norm": 1.234, "student/skipped": 0.0}
    made.show(logs)
    text, share = made.line()
    assert text.endswith(" | stage 0 of 2 toy 1/10 | diagonal=0.250, lr=3.0e-04, |g|=1.2, paired=0.20")
    assert 0 <= share < 1
    made.show({**logs, "critic/lr": 1e-3, "critic/gradient_norm": 0.5})
    assert "student lr=3.0e-04, critic lr=1.0e-03, student |g|=1.2, critic |g|=0.5" in made.line()[0]
    made.stage(1, 2, "toy", 0, 10)
    assert "paired" not in made.line()[0]


@frozen
class Looks:
    """An evaluation that tells how far it is."""

    told: list[str] = field(factory=list, eq=False)

    def __call__(self, nets: Networks, backbone: FlowMapSpec, out: Path) -> None:
        with counted(3, "evaluation") as tick:
            for _ in range(3):
                tick(1)
                self.told.append(status.read(out).state)

    def written(self, out: Path) -> bool:
        return False

    def quick(self) -> Looks:
        return self


def test_a_run_is_one_account_of_all_its_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SELDOM", 0.0)
    stages = (Stage(anyflow.forward(), 3, batch=4, optimizer=AdamW(lr=1e-3)),) * 2
    recipe = Recipe(Toy(), stages, data=data(), evaluation=Looks())
    distill(recipe, out=tmp_path, device="cpu", pm=QUIET)
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"flowmap: \d+%, ", line)]
    at = ["stage 0 of 2 anyflow_forward 3/3", "stage 1 of 2 anyflow_forward 1/3", "evaluation 0/3", "evaluation 3/3"]
    places = [next(i for i, line in enumerate(lines) if one in line) for one in at]
    assert places == sorted(places)
    assert "not counting stage 1, evaluation |" in lines[places[0] - 1]
    assert "not counting evaluation |" in lines[places[1] + 1] or "left |" in lines[places[1]]
    assert lines[-1].startswith("flowmap: 100%, ") and "left" not in lines[-1]
    shares = [int(re.findall(r"(\d+)%", line)[0]) for line in lines]
    assert all("evaluation 3/3" in line for line in lines if "flowmap: 100%" in line)
    assert all(0 <= share <= 100 for share in shares)
    found = status.read(tmp_path)
    assert found.left == 0.0 and found.uncounted == () and 0 < found.took < 600
    assert status.lines(tmp_path)["elapsed"] == status.clock(found.took)
    distill(recipe, out=tmp_path, device="cpu", pm=QUIET)
    assert status.read(tmp_path).spent == pytest.approx(found.took, abs=0.01)


def test_status_says_what_is_left_of_a_run_that_goes_on(tmp_path: Path) -> None:
    distill(Recipe(Toy(), (Stage(anyflow.forward(), 2, batch=4),), data=data()), out=tmp_path, device="cpu", pm=QUIET)
    now = status.time.time()
    goes_on = {**runs.status(tmp_path), **me(), "began": now - 125, "updated": now - 5, "spent": 3600.0, "left": 65.0}
    write_json(tmp_path / status.FILE, goes_on | {"state": "running", "uncounted": ["evaluation"]})
    told = status.lines(tmp_path)
    assert told["elapsed"] == "2:05, and 1:00:00 in earlier starts"
    assert told["left"] == "1:00 left, not counting evaluation"
    write_json(tmp_path / status.FILE, goes_on | {"state": "failed"})
    assert "left" not in status.lines(tmp_path)


def test_a_plan_says_a_line_a_stage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[plan.__module__], "DRAWS", 1)  # of 200: what a stage costs is not looked at
    recipe = Recipe(Toy(), (Stage(anyflow.forward(), 3, batch=4),) * 2, data=data())
    with lines():
        plan(recipe)
    out, err = capsys.readouterr()
    told = [f"flowmap: planning stage {k} (anyflow_forward), of 2" for k in range(2)]
    assert err.splitlines() == told and not out
    plan(recipe)
    assert capsys.readouterr() == ("", "")


def test_who_listens_hears_and_where_nobody_does_there_is_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[tuple[str, int, int | None]] = []
    tell("nothing")
    with heard(lambda *all: said.append(all)):
        tell("loading")
        with counted(5, "sampling") as tick:
            tick(2)
            tick(3)
    tell("nothing")
    assert said == [("loading", 0, None), ("sampling", 0, 5), ("sampling", 2, 5), ("sampling", 5, 5)]
    with counted(5) as tick:
        tick(5)
    assert len(said) == 4


def test_a_part_is_counted_with_the_rest() -> None:
    said: list[tuple[str, int, int | None]] = []
    with part_of(1, 2):
        tell("nobody listens")
    with heard(lambda *all: said.append(all)):
        with part_of(4, 9):
            tell("loading")
            tell("encoding", 2, 3)
        tell("encoding", 2, 3)
    assert said == [("loading", 0, None), ("encoding", 6, 9), ("encoding", 2, 3)]


def test_what_was_done_before_says_nothing_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    made, now = Progress(speaks=False), [100.0]
    monkeypatch.setattr("flowmap.training.forecast.time.monotonic", lambda: now[0])
    made.forecast.expect("encoding", 1)
    made.doing("encoding", 40, 100)
    assert made.forecast.left().told() == "encoding left"
    for done in (41, 42):
        now[0] += 60
        made.doing("encoding", done, 100)
    assert made.forecast.left().seconds == 58 * 60
