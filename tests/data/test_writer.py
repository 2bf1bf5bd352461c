"""Whatever interrupts the writing, and however many write: the same bytes in the end."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowmap.data import DataError, LatentShards
from flowmap.data.check import check
from flowmap.data.format import BadSamplesError
from flowmap.data.journal import JOB, JOURNAL
from flowmap.data.writer import Progress, write

from .made import Toy, content, plan, written

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    pass


def test_a_directory_holds_what_was_asked_for_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path)
    shards = [f"shard-0000{k}.safetensors" for k in range(3)]
    assert [*content(tmp_path)] == ["index.json", "null.safetensors", *shards]


@pytest.mark.parametrize("call", ["write", "flush", "fsync", "replace", "unlink", "open"])
def test_a_crash_at_any_operation_loses_nothing(tmp_path: Path, monkeypatch: Any, call: str) -> None:
    """Every operation of that kind in turn fails for good; what is there then is gone on with."""
    whole = content(written(tmp_path / "whole").path)
    crashed = 0
    for number in range(1, 200):
        out, left = tmp_path / f"{call}{number}", [number]
        with monkeypatch.context() as patched:
            plant(patched, call, left)
            try:
                write(out, plan(), Toy)
            except Killed:
                crashed += 1
        ended = left[0] > 0  # there were not so many operations
        if (out / "index.json").exists():
            assert content(out)["index.json"] == whole["index.json"]
        assert write(out, plan(), Toy) is not None
        assert content(out) == whole
        if ended:
            break
    assert ended and crashed >= 3


def plant(patched: Any, call: str, left: list[int]) -> None:
    """The `left`-th call of an operation raises, and every operation after it."""

    def counted(function: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return function(*arguments, **named)

        return run

    if call == "fsync":
        patched.setattr(os, "fsync", counted(os.fsync))
    elif call in ("replace", "unlink", "open"):
        patched.setattr(Path, call, counted(getattr(Path, call)))
    else:
        real = Path.open

        def opened(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            file = real(self, mode, *arguments, **named)
            return Failing(file, call, left) if mode in ("ab", "wb") else file

        patched.setattr(Path, "open", opened)


class Failing:
    """A file that writes half of what it is given, once, and nothing after."""

    def __init__(self, file: Any, call: str, left: list[int]) -> None:
        self.file, self.call, self.left = file, call, left

    def write(self, data: bytes) -> None:
        if self.call == "write":
            self.left[0] -= 1
            if self.left[0] <= 0:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                raise Killed
        self.file.write(data)

    def flush(self) -> None:
        if self.call == "flush":
            self.left[0] -= 1
            if self.left[0] <= 0:
                raise Killed
        self.file.flush()

    def truncate(self, size: int) -> None:
        self.file.truncate(size)

    def fileno(self) -> int:
        return int(self.file.fileno())

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def test_what_is_finished_is_not_made_again(tmp_path: Path) -> None:
    def stop(first: int) -> None:
        if first == 8:
            raise Killed

    with pytest.raises(Killed):
        write(tmp_path, plan(), lambda: Toy(stop))
    assert next(f.text for f in check(tmp_path)).endswith("2 of 3 shards are there; the command that began it goes on")
    made: list[int] = []
    seen: list[Progress] = []
    write(tmp_path, plan(), lambda: Toy(made.append), progress=seen.append)
    assert made == [8] and seen == [Progress(4, 4, 1)]

    def never() -> Toy:
        raise AssertionError("a finished directory needs no model")

    assert write(tmp_path, plan(), never) is not None


@pytest.mark.parametrize("stop", [None, 1, 2, 3, 4, 5])
def test_a_file_that_is_deleted_is_made_again_and_no_other(tmp_path: Path, stop: int | None, monkeypatch: Any) -> None:
    """Crashes on the way included."""
    whole = content(written(tmp_path).path)
    (tmp_path / "shard-00001.safetensors").unlink()
    (tmp_path / "shard-00002.safetensors").write_bytes(b"")
    if stop is not None:
        with monkeypatch.context() as patched:
            plant(patched, "fsync", [stop])
            with pytest.raises(Killed):
                write(tmp_path, plan(), Toy)
    made: list[int] = []
    write(tmp_path, plan(), lambda: Toy(made.append))
    assert content(tmp_path) == whole and made == [4, 8]


def test_another_job_is_refused_while_and_after_the_first(tmp_path: Path) -> None:
    def stop(first: int) -> None:
        if first == 4:
            raise Killed

    with pytest.raises(Killed):
        write(tmp_path, plan(), lambda: Toy(stop))
    before = content(tmp_path)
    with pytest.raises(DataError, match=r"beginning of other data: steps = null, now 3; give another"):
        write(tmp_path, plan(steps=3), Toy)
    assert content(tmp_path) == before
    write(tmp_path, plan(), Toy)
    with pytest.raises(DataError, match="data of another making: count = 10, now 11"):
        write(tmp_path, plan(11), Toy)
    assert write(tmp_path, plan(5), Toy, replace=True) is not None
    assert content(tmp_path) == content(written(tmp_path / "other", 5).path) | {}


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_are_the_whole(tmp_path: Path, parts: int) -> None:
    whole = content(written(tmp_path / "whole").path)
    for i in range(parts, 1, -1):
        assert write(tmp_path / "out", plan(), Toy, part=(i, parts)) is None
        with pytest.raises(DataError, match="holds no encoded data"):
            LatentShards.open(tmp_path / "out")
    assert write(tmp_path / "out", plan(), Toy, part=(1, parts)) is not None
    assert content(tmp_path / "out") == whole


def test_several_at_once_share_the_work_and_all_come_to_the_end(tmp_path: Path) -> None:
    whole = content(written(tmp_path / "whole", 40).path)
    made: list[tuple[int, int]] = []

    def work(worker: int) -> None:
        def begin(first: int) -> None:
            made.append((first, worker))
            time.sleep(0.02)

        assert write(tmp_path / "out", plan(40), lambda: Toy(begin)) is not None

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert content(tmp_path / "out") == whole
    assert sorted(first for first, _ in made) == [-1, *range(0, 40, 4)]  # each once
    assert len({worker for _, worker in made}) > 1


def test_a_journal_that_was_cut_short_or_lies_is_not_believed(tmp_path: Path) -> None:
    def stop(first: int) -> None:
        if first == 8:
            raise Killed

    whole = content(written(tmp_path / "whole").path)
    for damage in ("line", "file", "noise"):
        out = tmp_path / damage
        with pytest.raises(Killed):
            write(out, plan(), lambda: Toy(stop))
        journal = out / JOURNAL
        if damage == "line":
            journal.write_bytes(journal.read_bytes()[:-20])
        elif damage == "file":
            (out / "shard-00000.safetensors").write_bytes(b"")
        else:
            journal.write_bytes(journal.read_bytes() + b'\n{"file": {"file": "../../x"')
        assert write(out, plan(), Toy) is not None
        assert content(out) == whole


def test_shards_of_another_shape_are_refused(tmp_path: Path) -> None:
    class Uneven(Toy):
        def samples(self, first: int, last: int) -> Any:
            made = super().samples(first, last)
            return made if first < 8 else type(made)(made.x[..., :1], made.prompts, made.cond)

    with pytest.raises(DataError, match=r"shard-00002.* the shards before have"):
        write(tmp_path, plan(), Uneven)
    assert not (tmp_path / "index.json").exists()


SLOW = """
import sys, time
from pathlib import Path
from flowmap.data.writer import write
from tests.data.made import Toy, plan
write(Path(sys.argv[1]), plan(40), lambda: Toy(lambda first: time.sleep(0.03)))
"""


def test_kill_9_and_go_on_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two processes, both killed in the middle of a shard; the next pair comes to the end."""
    whole, out = content(written(tmp_path / "whole", 40).path), tmp_path / "out"
    for lines in (5, None):
        pair = [
            subprocess.Popen([sys.executable, "-c", SLOW, str(out)], cwd=ROOT, start_new_session=True) for _ in range(2)
        ]
        try:
            if lines is not None:
                until(lambda lines=lines: count(out / JOURNAL) >= lines)
                for process in pair:
                    os.killpg(process.pid, signal.SIGKILL)
            codes = [process.wait(60) for process in pair]
        finally:
            for process in pair:
                process.kill()
        assert codes == ([0, 0] if lines is None else [-9, -9])
        assert (out / JOB).exists() == (lines is not None)
    assert content(out) == whole


def until(reached: Any) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def count(journal: Path) -> int:
    return len(journal.read_bytes().split()) and journal.read_bytes().count(b'"shapes"') if journal.exists() else 0


def test_what_was_begun_and_has_nothing_finished_gives_way(tmp_path: Path) -> None:
    def stop(first: int) -> None:
        if first == 0:
            raise Killed

    with pytest.raises(Killed):
        write(tmp_path, plan(), lambda: Toy(stop))
    assert (tmp_path / JOB).is_file()
    with (tmp_path / ".shard-00000.safetensors.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # somebody is at work on the first
        with pytest.raises(DataError, match="beginning of other data"):
            write(tmp_path, plan(steps=3), Toy)
    assert write(tmp_path, plan(steps=3), Toy) is not None
    assert content(tmp_path) == content(write_other(tmp_path / "other").path)


def write_other(path: Path) -> LatentShards:
    data = write(path, plan(steps=3), Toy)
    assert data is not None
    return data


def test_what_a_maker_refuses_leaves_no_trace(tmp_path: Path) -> None:
    def refuses() -> Toy:
        raise DataError("no such size")

    with pytest.raises(DataError, match="no such size"):
        write(tmp_path / "a" / "out", plan(), refuses)
    assert [*tmp_path.iterdir()] == []
    written(tmp_path)
    before = content(tmp_path)
    with pytest.raises(DataError, match="another making"):
        write(tmp_path, plan(11), refuses)
    assert content(tmp_path) == before


def test_a_command_whose_directory_another_took_stops(tmp_path: Path) -> None:
    def taken(first: int) -> None:
        if first == 0:
            (tmp_path / JOB).write_text("{}")

    with pytest.raises(DataError, match="another command has begun other data here"):
        write(tmp_path, plan(), lambda: Toy(taken))
    assert not (tmp_path / "shard-00001.safetensors").exists()


def test_every_sample_that_cannot_be_made_is_named_and_the_others_kept(tmp_path: Path) -> None:
    def bad(first: int) -> None:
        if first in (0, 8):
            raise BadSamplesError([(f"{first}", f"{first} is bad")])

    for part in ((1, 1), (2, 2)):
        with pytest.raises(BadSamplesError) as told:
            write(tmp_path, plan(), lambda: Toy(bad), part=part)
        assert [name for name, _ in told.value.samples] == ["0", "8"]
        assert (tmp_path / "shard-00001.safetensors").is_file()
    made: list[int] = []
    write(tmp_path, plan(), lambda: Toy(made.append))
    assert made == [0, 8]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 2, "count": 1, "skipped": 3}'])
def test_an_index_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    written(tmp_path)
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index\.json (is damaged: .*; put back a copy|has the format)"):
        LatentShards.open(tmp_path)
