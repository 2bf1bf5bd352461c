"""When a run saves, what becomes of failures, and what ranks do together (here: one)."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Timer
from time import sleep

import pytest
from attrs import define, field

from flowmap import atomic, faults
from flowmap.training import saving
from flowmap.training.ranks.agree import RankError, anywhere, everywhere, on_first
from flowmap.training.run import Run
from flowmap.training.saving import FAILURES, Saves
from flowmap.training.store import checkpoint
from flowmap.training.store.checkpoint import SaveError
from flowmap.training.store.writing import Steps, Writing


@define
class Disk:
    """In place of `checkpoint.begin`: works or not, as it is told, once it is not `slow` any more."""

    works: list[bool] = field(factory=list)
    slow: Event = field(factory=Event)

    def begin(self, folder: Path, *rest: object) -> Writing:
        works = self.works.pop(0)

        def steps() -> Steps:
            yield self.slow.wait
            if not works:
                raise SaveError("no room")
            return folder / "step"

        return Writing(steps())


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    made.slow.set()
    monkeypatch.setattr(checkpoint, "begin", made.begin)
    return made


def saves(tmp_path: Path, minutes: float = 0.0) -> Saves:
    return Saves(tmp_path, "digest", Run(None), minutes)


def test_failures_are_counted_in_a_row(tmp_path: Path, disk: Disk) -> None:
    made = saves(tmp_path)
    disk.works = [False, False, True, False, False, True]
    for _ in range(6):
        made.save(None, {}, 1, last=False, wait=True)  # type: ignore[arg-type]
    assert (made.failed, made.lost) == (0, 4)
    disk.works = [False] * FAILURES
    for _ in range(FAILURES - 1):
        made.save(None, {}, 1, last=False, wait=True)  # type: ignore[arg-type]
    with pytest.raises(SaveError, match=f"no room \\({FAILURES} in a row\\): make room in .*, then go on"):
        made.save(None, {}, 1, last=False, wait=True)  # type: ignore[arg-type]


def test_the_last_one_of_a_run_may_not_fail(tmp_path: Path, disk: Disk) -> None:
    disk.works = [False]
    with pytest.raises(SaveError, match="the last one of the run"):
        saves(tmp_path).save(None, {}, 1, last=True, wait=True)  # type: ignore[arg-type]


def test_training_goes_on_while_a_save_is_written_and_the_next_one_waits(tmp_path: Path, disk: Disk) -> None:
    disk.works = [True, True]
    disk.slow.clear()
    made = saves(tmp_path, minutes=5.0)
    made.save(None, {}, 1, last=False, wait=False)  # type: ignore[arg-type]
    for _ in range(3):
        assert made.agreed(False) == (False, False) and made.newest is None
    Timer(0.2, disk.slow.set).start()
    made.save(None, {}, 2, last=False, wait=False)  # type: ignore[arg-type]
    assert made.newest == tmp_path / "step" and len(disk.works) == 0  # the first one, before the second began
    made.wait()


def test_a_failure_while_training_goes_on_is_told_in_the_next_iteration(
    tmp_path: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.works = [False] * FAILURES
    made = saves(tmp_path, minutes=5.0)
    for number in range(1, FAILURES + 1):
        made.save(None, {}, 1, last=False, wait=False)  # type: ignore[arg-type]
        while made._writing is not None and made._writing.busy:
            sleep(0.001)
        if number == FAILURES:
            with pytest.raises(SaveError, match=f"no room \\({FAILURES} in a row\\)"):
                made.agreed(False)
        else:
            assert made.agreed(False) == (False, False)
        assert made.failed == number and f"SAVE FAILED ({number} in a row" in capsys.readouterr().err


def test_a_run_that_ends_in_an_error_keeps_what_it_was_writing(tmp_path: Path, disk: Disk) -> None:
    disk.works = [True, False]
    disk.slow.clear()
    made = saves(tmp_path)
    made.save(None, {}, 1, last=False, wait=False)  # type: ignore[arg-type]
    Timer(0.2, disk.slow.set).start()
    made.leave()
    assert made.newest == tmp_path / "step"
    made.save(None, {}, 1, last=False, wait=False)  # type: ignore[arg-type]
    made.leave()  # what ended it is told, and this is in the log
    assert made.failed == 1


def test_it_is_time_after_some_minutes(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(saving.time, "monotonic", lambda: now)
    made = saves(tmp_path, minutes=5.0)
    made._last = now
    now += 299
    assert made.agreed(False) == (False, False) and made.agreed(True) == (True, False)
    now += 1
    assert made.agreed(False) == (False, True)
    disk.works = [True]
    made.save(None, {}, 1, last=False, wait=True)  # type: ignore[arg-type]
    assert made.agreed(False) == (False, False)
    assert Saves(None, "digest", Run(None), 0.0).agreed(False) == (False, False)  # nothing is kept


def test_an_error_of_a_rank_is_one_of_all() -> None:
    def full() -> int:
        raise OSError(28, "No space left on device", "a file")

    assert everywhere(lambda: 3) == [3] and on_first(lambda: 4) == 4 and anywhere(True, False) == (True, False)
    with pytest.raises(RankError, match=r"^No space left on device: a file$"):
        everywhere(full)
    with pytest.raises(KeyboardInterrupt):  # no error, but the end
        on_first(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


FAULTS = [
    ("here", [True, False, False]),
    ("here:2", [False, True, False]),
    ("here:2-", [False, True, True]),
    ("here:1-2", [True, True, False]),
    ("there", [False, False, False]),
    ("here:3@1", [False, False, False]),
    ("there:1,here:3", [False, False, True]),
]


@pytest.mark.parametrize("fault, hit", FAULTS)
def test_faults_happen_where_and_when_they_are_asked_for(
    fault: str, hit: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_reached", faults.Counter())
    given = ",".join(f"{one.partition('@')[0]}:raise{''.join(one.partition('@')[1:])}" for one in fault.split(","))
    monkeypatch.setenv("FLOWMAP_FAULT", given)
    for expected in hit:
        if expected:
            with pytest.raises(RuntimeError, match="here: a fault was asked for"):
                faults.reach("here")
        else:
            faults.reach("here")


def test_a_directory_is_replaced_at_once(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with atomic.whole(tmp_path / "deep" / "student") as folder:
            (folder / "a").write_text(text)
        assert [p.name for p in (tmp_path / "deep").iterdir()] == ["student"]
        assert (tmp_path / "deep" / "student" / "a").read_text() == text
    with pytest.raises(FileNotFoundError), atomic.whole(tmp_path / "deep" / "student") as folder:
        (folder / "there is no" / "such folder").touch()
    assert (tmp_path / "deep" / "student" / "a").read_text() == "two"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["student"]
