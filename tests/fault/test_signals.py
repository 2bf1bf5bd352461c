"""R6: SIGTERM, SIGINT, SIGUSR1. The step is finished and saved; the next call goes on. A second one does not wait."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from attrs import evolve

from flowmap import FlowMapSpec, distill
from flowmap.faults import reach
from flowmap.objectives import Networks
from flowmap.plugins import manager
from tests.toys import data

from .harness import End, Running, finished, newest, recipe, run, start, status

TERM, USR1 = 128 + signal.SIGTERM, 128 + signal.SIGUSR1


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished(tmp_path_factory.mktemp("whole") / "run")


def preempted(out: Path, end: End, code: int) -> None:
    assert end.codes == (code,) * len(end.codes), end.said
    said = status(out)
    assert said["state"] == "preempted" and said["resumable"]


FAULTS = {
    "in a step": ("data.next:9:term", TERM),
    "SIGUSR1": ("data.next:9:usr1", USR1),
    "in the first step": ("data.next:1:term", TERM),
    "between student and critic": ("student.after:5:term", TERM),
    "during a save": ("save.shard:4:term", TERM),
    "during a save that is slow": ("save.shard:4:term,save.shard:4:stall", TERM),
    "during its purge": ("purge:5:term,purge:5:stall", TERM),
    "during the save at the end of a stage": ("save.after_manifest:6:term", TERM),
    "during the last save": ("save.after_data:9:term", TERM),
    "after the last save": ("save.after_rename:9:term", TERM),
    "while data stall": ("data.next:9:term,data.next:9:stall", TERM),
    "while the student is written": ("publish.before:1:term", TERM),
}


@pytest.mark.row("R6")
@pytest.mark.parametrize("fault, code", FAULTS.values(), ids=FAULTS.keys())
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    fault: str, code: int, tmp_path: Path, uninterrupted: str
) -> None:
    preempted(tmp_path / "run", run(tmp_path / "run", fault), code)
    assert finished(tmp_path / "run") == uninterrupted


def trains(out: Path, going: Running) -> bool:
    try:
        said = status(out)
    except FileNotFoundError:
        return False
    return said["pid"] == going.ranks[0].pid and said["stage"] is not None


class Evaluation:
    """Takes its time."""

    def __call__(self, nets: Networks, backbone: FlowMapSpec, out: Path) -> None:
        reach("evaluation")
        (out / "judged").touch()

    def written(self, out: Path) -> bool:
        return (out / "judged").exists()

    def quick(self) -> Evaluation:
        return self


def judged(out: Path) -> None:
    made = evolve(recipe(), evaluation=Evaluation())
    distill(made, data(), out=out, save_minutes=0, device="cpu", pm=manager(entry_points=False))


@pytest.mark.row("R6")
def test_during_an_evaluation_too(tmp_path: Path, uninterrupted: str) -> None:
    preempted(tmp_path / "run", run(tmp_path / "run", "evaluation:1:term", job=judged), TERM)
    assert finished(tmp_path / "run", job=judged) == uninterrupted and (tmp_path / "run" / "judged").exists()


@pytest.mark.row("R6")
def test_it_stops_after_the_step_that_it_was_in(tmp_path: Path) -> None:
    run(tmp_path / "run", "data.next:9:term")  # two micro-batches an iteration: in the fifth, the second of stage 1
    assert newest(tmp_path / "run").name == "step_01_00000002"


@pytest.mark.row("R6")
def test_a_second_signal_leaves_at_once(tmp_path: Path, uninterrupted: str) -> None:
    end = run(tmp_path / "run", "data.next:9:term,data.next:10:term")
    assert end.codes == (-signal.SIGTERM,)
    # the step before may not be whole on the disk yet
    assert newest(tmp_path / "run").name in ("step_00_00000003", "step_01_00000001")
    assert finished(tmp_path / "run") == uninterrupted


@pytest.mark.row("R6")
def test_from_outside_and_twice(tmp_path: Path, uninterrupted: str) -> None:
    """Interrupted again as soon as it goes on."""
    for first in (3, 7):
        going = start(tmp_path / "run", f"data.next:{first}:stall")
        while not trains(tmp_path / "run", going):
            assert going.ranks[0].is_alive()
        going.signal(signal.SIGINT)
        preempted(tmp_path / "run", going.wait(), 128 + signal.SIGINT)
    assert finished(tmp_path / "run") == uninterrupted
