"""R4 and R17: a disk that takes nothing for a while, or takes its time. Only checkpoints are lost, and that is said."""

from __future__ import annotations

import os
import resource
from functools import partial
from pathlib import Path

import pytest

from flowmap import distill, faults
from flowmap.hookspecs import hookimpl
from flowmap.plugins import manager
from flowmap.training.loop import Trainer
from flowmap.training.store.checkpoint import published
from tests.toys import data

from .harness import End, finished, newest, recipe, run, status


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished(tmp_path_factory.mktemp("whole") / "run", ranks=2)


def clean(out: Path) -> None:
    """Nothing half written is left, and what is there is whole."""
    assert not list((out / "checkpoints").glob(".tmp-*")) and not list((out / "checkpoints").glob("*.corrupt"))


REFUSED = {
    "a shard": ("save.shard:4:nospace", "No space left on device"),
    "a quota": ("save.shard:4:quota", "Disk quota exceeded"),
    "a directory": ("save.create:4:readonly", "Read-only file system"),
    "the manifest": ("save.manifest:4:nospace", "No space left on device"),
    "twice": ("save.shard:4-5:nospace", "No space left on device"),
    "now and then": ("save.shard:2-3:nospace,save.shard:5-6:nospace", "No space left on device"),
    "the end of a stage": ("save.manifest:3:quota", "Disk quota exceeded"),
}


@pytest.mark.row("R4")
@pytest.mark.parametrize("fault, why", REFUSED.values(), ids=REFUSED.keys())
def test_a_full_disk_costs_checkpoints_and_nothing_else(
    fault: str, why: str, tmp_path: Path, uninterrupted: str
) -> None:
    out = tmp_path / "run"
    end = run(out, fault)
    assert end.code == 0, end.said
    clean(out)
    notes = [note for note in status(out)["notes"] if "SAVE FAILED (1 in a row" in note]  # type: ignore[attr-defined]
    assert notes and all(why in note and note in end.said for note in notes)
    assert finished(out) == uninterrupted


def given_up(end: End, out: Path, why: str) -> None:
    assert end.code == 1 and "Traceback" not in end.said, end.said
    said = status(out)
    assert said["state"] == "failed" and said["resumable"] and why in str(said["reason"])
    assert why in end.said.splitlines()[-1] and "then go on from the one before" in end.said.splitlines()[-1]
    clean(out)


@pytest.mark.row("R4")
def test_three_in_a_row_end_the_run(tmp_path: Path, uninterrupted: str) -> None:
    given_up(run(tmp_path / "run", "save.shard:4-:nospace"), tmp_path / "run", "3 in a row")
    assert newest(tmp_path / "run").name == "step_00_00000003"  # the one before is as it was
    assert finished(tmp_path / "run") == uninterrupted


@pytest.mark.row("R4")
def test_the_last_one_ends_it_at_once(tmp_path: Path, uninterrupted: str) -> None:
    given_up(run(tmp_path / "run", "save.shard:9:nospace"), tmp_path / "run", "the last one of the run")
    assert finished(tmp_path / "run") == uninterrupted


@pytest.mark.row("R4")
def test_so_does_the_one_after_a_signal(tmp_path: Path, uninterrupted: str) -> None:
    fault = "data.next:9:term,save.shard:5:nospace"
    given_up(run(tmp_path / "run", fault), tmp_path / "run", "the last one of the run")
    assert finished(tmp_path / "run") == uninterrupted


@pytest.mark.row("R4")
def test_a_disk_that_is_full_on_one_rank_is_full_for_all(tmp_path: Path, of_two_ranks: str) -> None:
    out = tmp_path / "run"
    end = run(out, "save.shard:4:nospace@1", ranks=2)
    assert end.codes == (0, 0), end.said
    clean(out)
    (note,) = status(out)["notes"]  # type: ignore[misc]
    assert "rank 1: No space left on device" in note
    assert finished(out, ranks=2) == of_two_ranks


@pytest.mark.row("R4")
def test_and_ends_the_run_on_all(tmp_path: Path, of_two_ranks: str) -> None:
    end = run(tmp_path / "run", "save.shard:4-6:nospace@1", ranks=2)
    assert end.codes == (1, 1), end.said
    given_up(end, tmp_path / "run", "3 in a row")
    assert finished(tmp_path / "run", ranks=2) == of_two_ranks


class Limits:
    """From stage 1 on, no file may grow past a size that a shard needs."""

    @staticmethod
    @hookimpl
    def flowmap_train_start(trainer: Trainer) -> None:
        if trainer.number == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, resource.RLIM_INFINITY))


def limited(out: Path) -> None:
    distill(recipe(), data(), out=out, save_minutes=0, device="cpu", pm=manager(Limits(), entry_points=False))


@pytest.mark.row("R4")
def test_a_limit_of_the_kernel_is_met_in_the_middle_of_a_file(tmp_path: Path, uninterrupted: str) -> None:
    given_up(run(tmp_path / "run", job=limited), tmp_path / "run", "3 in a row")
    assert "File too large" in str(status(tmp_path / "run")["reason"])
    assert newest(tmp_path / "run").name == "step_00_00000003"
    assert finished(tmp_path / "run") == uninterrupted


@pytest.mark.row("R4")
def test_a_student_that_cannot_be_written_is_written_by_the_next_call(tmp_path: Path, uninterrupted: str) -> None:
    end = run(tmp_path / "run", "student.saved:1:nospace")
    assert end.code == 1 and "No space left on device" in end.said.splitlines()[-1]
    assert not (tmp_path / "run" / "student").exists()
    assert finished(tmp_path / "run") == uninterrupted


def watched(out: Path, *, at: str) -> None:
    """A slow disk; what was published when the run has returned."""
    os.environ["FLOWMAP_FAULT"] = f"{at}:stall"
    distill(recipe(), data(), out=out, save_minutes=0, device="cpu", pm=manager(entry_points=False))
    point, _, count = at.partition(":")
    assert faults.counted(point) >= int(count)  # it was slow
    print("published:", *(path.name for path in published(out / "checkpoints")))


@pytest.mark.row("R17")
@pytest.mark.parametrize("at", ["save.shard:8", "save.shard:9", "save.after_data:9", "save.manifest:9"])
def test_a_slow_one_is_awaited(at: str, tmp_path: Path, uninterrupted: str) -> None:
    """By the next save, the purge that follows it, and the end of the run; training goes on meanwhile."""
    end = run(tmp_path / "run", job=partial(watched, at=at))
    assert end.code == 0 and end.seconds > faults.STALL, end.said
    expected = ["step_00_00000003", "step_01_00000003", "step_02_00000002", "step_02_00000003"]
    assert end.said.splitlines()[-1] == f"published: {' '.join(expected)}"
    assert finished(tmp_path / "run") == uninterrupted


@pytest.mark.row("R17")
def test_one_that_is_slow_on_one_rank_is_awaited_by_all(tmp_path: Path, of_two_ranks: str) -> None:
    end = run(tmp_path / "run", "save.shard:4:stall@1,save.manifest:5:stall@0", ranks=2)
    assert end.codes == (0, 0) and end.seconds > faults.STALL, end.said
    assert status(tmp_path / "run")["notes"] == []
    assert finished(tmp_path / "run", ranks=2) == of_two_ranks


@pytest.mark.row("R17")
def test_one_that_fails_late_is_a_failure(tmp_path: Path, uninterrupted: str) -> None:
    """Slow first, and then there is no room."""
    end = run(tmp_path / "run", "save.shard:9:stall,save.shard:9:nospace")
    given_up(end, tmp_path / "run", "the last one of the run")
    assert finished(tmp_path / "run") == uninterrupted
