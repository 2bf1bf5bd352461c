"""R18: two runs in one directory. The second refuses and says who is there; the lock of a dead run is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowmap.training.store import lock
from flowmap.training.store.lock import Lock, LockError, me
from tests import runs

pytestmark = pytest.mark.row("R18")
STARTED = "2026-01-02T03:04:05+0000"


def held(path: Path, **by: Any) -> None:
    path.mkdir(exist_ok=True)
    (path / ".lock").write_text(json.dumps({**me(), "started": STARTED, **by}))


def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def _no_kernel_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


def refused(path: Path) -> str:
    with pytest.raises(LockError) as error, Lock(path):
        pass
    return str(error.value)


def test_the_second_is_told_who_works_there_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    with Lock(tmp_path) as first:
        who = f"pid {os.getpid()} on {me()['host']}, started {first.started}"
        assert refused(tmp_path) == (f"{tmp_path}: another run works here ({who}): stop it, or give another directory")
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert first.taken_over is None
    with Lock(tmp_path) as again:
        assert again.taken_over is None


@pytest.mark.usefixtures("_no_kernel_locks")
def test_without_locks_of_the_kernel_the_files_word_counts(tmp_path: Path) -> None:
    with Lock(tmp_path):
        assert f"pid {os.getpid()} on" in refused(tmp_path)
    with Lock(tmp_path):
        pass


@pytest.fixture(params=["with kernel locks", "without"])
def _either(request: pytest.FixtureRequest) -> None:
    if request.param == "without":
        request.getfixturevalue("_no_kernel_locks")


@pytest.mark.usefixtures("_either")
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    pid = dead()
    held(tmp_path, pid=pid)
    with Lock(tmp_path) as taken:
        assert taken.taken_over == f"pid {pid} on {me()['host']}, started {STARTED}"
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("_no_kernel_locks")
def test_another_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    held(tmp_path, ticks=1)
    with Lock(tmp_path) as taken:
        assert taken.taken_over is not None


@pytest.mark.usefixtures("_either")
def test_a_lock_from_another_machine_stands_until_it_has_been_silent(tmp_path: Path) -> None:
    held(tmp_path, host="elsewhere", pid=7)
    assert refused(tmp_path) == (
        f"{tmp_path}: another run works here (pid 7 on elsewhere, started {STARTED}): if it is dead, wait 10 minutes "
        f"from its end, or remove {tmp_path / '.lock'}"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock"]
    before = time.time() - lock.SILENT - 1
    os.utime(tmp_path / ".lock", (before, before))
    with Lock(tmp_path) as taken:
        assert taken.taken_over == f"pid 7 on elsewhere, started {STARTED}"


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with Lock(tmp_path):
        os.utime(tmp_path / ".lock", (1, 1))
        deadline = time.monotonic() + 5
        while (tmp_path / ".lock").stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / ".lock").stat().st_mtime > 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_torn_holds_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(text)
    with Lock(tmp_path) as taken:
        assert taken.taken_over is None


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    runs.write(tmp_path / "mine.py")
    process = runs.start(tmp_path, "distill", "mine.py", "--out", "run")
    runs.trains(tmp_path / "run", process)
    yield process
    process.kill()
    process.communicate()


def test_two_runs(running: subprocess.Popen[str], tmp_path: Path) -> None:
    second = runs.start(tmp_path, "distill", "mine.py", "--out", "run")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert err.startswith("flowmap: run: another run works here (pid ") and err.count("\n") == 1
    assert f"(pid {running.pid} on {me()['host']}, started 20" in err
    assert runs.status(tmp_path / "run")["pid"] == running.pid and running.poll() is None

    running.send_signal(signal.SIGKILL)
    running.communicate()
    third = runs.start(tmp_path, "distill", "mine.py", "--out", "run")
    deadline = time.monotonic() + 60
    while runs.status(tmp_path / "run")["pid"] != third.pid and time.monotonic() < deadline:
        time.sleep(0.05)
    third.send_signal(signal.SIGTERM)
    _, err = third.communicate(timeout=60)
    assert f"took over from a run that was killed (pid {running.pid} on" in err
    assert f"took over from a run that was killed (pid {running.pid} on" in runs.status(tmp_path / "run")["notes"][0]
