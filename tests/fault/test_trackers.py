"""R22: trackers that raise, block, or are not there. Training is not touched, and `metrics.jsonl` is complete."""

from __future__ import annotations

import json
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from flowmap import AdamW, Recipe, Stage, distill, hookimpl
from flowmap.cli import main
from flowmap.methods import anyflow
from flowmap.plugins import PluginError, manager
from flowmap.training import tracking
from flowmap.training.tracking import Tracked, TrackerError
from tests import runs
from tests.toys import Toy, data

pytestmark = pytest.mark.row("R22")
STEPS = 25
RECIPE = Recipe(Toy(), (Stage(anyflow.forward(), STEPS, batch=4, optimizer=AdamW(lr=1e-3)),), data=data())
RECORDS = [0, 10, 20, 24]


@define
class Faulty:
    """A tracker that does `fault` at every record, or as it is made or closed."""

    log_fault: Callable[[], object] = lambda: None
    close_fault: Callable[[], object] = lambda: None
    had: list[tuple[int, int, dict[str, float]]] = field(factory=list)
    closed: int = 0
    thread: int = 0

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        self.thread = threading.get_ident()
        self.had.append((stage, iteration, dict(values)))
        self.log_fault()

    def close(self) -> None:
        self.closed += 1
        self.close_fault()


def raises() -> None:
    raise ConnectionError("no route to host")


def plugins(make: Callable[[Path], Any]) -> Any:
    class Plugin:
        @hookimpl
        def flowmap_trackers(self) -> dict[str, Any]:
            return {"board": make}

    return manager(Plugin(), entry_points=False)


def run(out: Path, make: Callable[[Path], Any]) -> tuple[list[int], list[str]]:
    """The iterations of `metrics.jsonl`, and the notes."""
    distill(RECIPE, out=out, device="cpu", track=["board"], pm=plugins(make))
    found = runs.status(out)
    assert found["state"] == "finished" and found["hash"] == HASH[0]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines], found["notes"]


HASH: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def _untracked(tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("untracked")
    distill(RECIPE, out=out, device="cpu", pm=manager(entry_points=False))
    HASH[:] = [runs.status(out)["hash"]]


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 0.3)
    monkeypatch.setattr(tracking, "START", 0.1)


def test_a_tracker_has_every_record_on_a_thread_of_its_own(tmp_path: Path) -> None:
    tracker = Faulty()
    assert run(tmp_path, lambda path: tracker) == (RECORDS, [])
    assert [(stage, iteration) for stage, iteration, _ in tracker.had] == [(0, i) for i in RECORDS]
    assert "student/gradient_norm" in tracker.had[0][2]
    assert tracker.closed == 1 and tracker.thread != threading.get_ident()


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "it cannot be made": (lambda path: raises(), "is switched off: ConnectionError: no route to host"),
    "every record": (lambda path: Faulty(raises), "is switched off: ConnectionError: no route to host"),
    "the end": (lambda path: Faulty(close_fault=raises), "failed as it was closed: ConnectionError: no route to host"),
    "it is none": (lambda path: 3, "is switched off: AttributeError: 'int' object has no attribute 'log'"),
}


@pytest.mark.parametrize("make, note", FAULTS.values(), ids=FAULTS)
def test_one_that_raises(make: Callable[[Path], Any], note: str, tmp_path: Path) -> None:
    records, notes = run(tmp_path, make)
    assert records == RECORDS
    assert notes[0] == f"tracker 'board' {note}"


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("where", ["it is made", "a record", "the end"])
def test_one_that_blocks(where: str, tmp_path: Path) -> None:
    free = threading.Event()
    block = {where: lambda: free.wait(30)}

    def make(path: Path) -> Faulty:
        block.get("it is made", lambda: None)()
        return Faulty(block.get("a record", lambda: None), block.get("the end", lambda: None))

    began = time.monotonic()
    records, notes = run(tmp_path, make)
    free.set()
    assert records == RECORDS and time.monotonic() - began < 10
    assert "tracker 'board' did not finish within 0.3 seconds, and is left behind" in notes


@pytest.mark.usefixtures("_short")
def test_what_does_not_fit_into_the_queue_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MOST", 5)
    free, notes = threading.Event(), []
    tracker = Faulty(lambda: free.wait(30))
    tracked = Tracked("board", lambda path: tracker, tmp_path, notes.append)
    tracked.put(0, 0, {})
    while not tracker.had:
        time.sleep(0.01)
    for iteration in range(1, 11):
        tracked.put(0, iteration, {})
    assert tracked.left_out == 5
    free.set()
    tracked.close()
    assert [iteration for _, iteration, _ in tracker.had] == [0, 1, 2, 3, 4, 5]
    assert notes == [
        "tracker 'board' does not keep up: records are left out (metrics.jsonl has them all)",
        "tracker 'board' has not had 5 records; metrics.jsonl has them all",
    ]


def test_one_that_fails_now_and_then_goes_on(tmp_path: Path) -> None:
    failures = iter([True, True, False, True])

    def fault() -> None:
        if next(failures, False):
            raises()

    tracker = Faulty(fault)
    notes = run(tmp_path, lambda path: tracker)[1]
    assert len(tracker.had) == len(RECORDS)
    assert notes == ["tracker 'board' has not had 3 records; metrics.jsonl has them all"]


def test_a_name_that_there_is_not_is_said_before_anything(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no tracker is called 'bord': there are board; did you mean 'board'"):
        distill(RECIPE, out=tmp_path / "run", track=["bord"], pm=plugins(lambda path: Faulty()))
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing_is_said_before_training(tmp_path: Path) -> None:
    def make(path: Path) -> Any:
        raise ModuleNotFoundError("No module named 'board'")

    with pytest.raises(TrackerError, match="tracker 'board' cannot be used here: No module named 'board'"):
        distill(RECIPE, out=tmp_path, track=["board"], pm=plugins(make))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a writer in place of its own, so that the test does not need the extra."""
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, path: Path) -> None:
            assert path == Path("run/tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None: ...

        def close(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.chdir(tmp_path)
    runs.write(Path("mine.py"), steps=12)
    assert main(["distill", "mine.py", "--out", "run", "--track", "tensorboard"]) == 0
    assert {step for name, _, step in written if name == "stage 0/student/gradient_norm"} == {0, 10, 11}
    assert runs.status(tmp_path / "run")["notes"] == []
