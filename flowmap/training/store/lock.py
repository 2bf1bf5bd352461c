"""One run at a time in a directory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

from ...atomic import folder

try:
    import fcntl
except ImportError:  # not a POSIX system: the file's word is all there is
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
BEAT = 30.0  # seconds between two signs of life
SILENT = 600.0  # seconds without one, after which a holder on another machine counts as dead
ORPHANS = 10.0  # seconds that children of a killed run get to notice it: they hold its lock as it did


class LockError(Exception):
    """Another run works in the directory; nothing was started."""


@define
class Lock:
    """While entered, the directory is this process's.

    A lock of the kernel on the file `.lock`, so that the lock of a killed process is gone with it; and in the file who
    holds it, for whom it turns away. Network file systems may keep such locks to one machine, or have none: there the
    file's word counts, unless its process is dead, or, on another machine, has given no sign of life for ten minutes.
    """

    directory: Path
    started: str = field(init=False)
    taken_over: str | None = field(default=None, init=False)  # from whom: a run that was killed
    _file: int | None = field(default=None, init=False)
    _done: threading.Event = field(factory=threading.Event, init=False)
    _beats: threading.Thread | None = field(default=None, init=False)

    def __enter__(self) -> Lock:
        folder(self.directory)
        path = self.directory / NAME
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            sure = self._locked(path)
            holder = _holder(path)
            if holder and not _gone(holder, path, sure):
                raise LockError(_refusal(self.directory, holder, path))
        except BaseException:
            os.close(self._file)
            raise
        self.taken_over = _named(holder) if holder else None
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._write(json.dumps({**me(), "started": self.started}) + "\n")
        self._beats = threading.Thread(target=self._beat, args=(path,), name="flowmap-lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._file is not None and self._beats is not None
        self._done.set()
        self._beats.join()
        with contextlib.suppress(OSError):
            self._write("")  # not removed: another process may have opened it already, and would lock what is no more
        os.close(self._file)

    def _locked(self, path: Path) -> bool:
        """Whether the kernel gave its lock; False where the file system has none; an error where another has it."""
        deadline = time.monotonic() + ORPHANS
        while fcntl is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(path)
                if holder is None or alive(holder) is not False or time.monotonic() > deadline:
                    raise LockError(_refusal(self.directory, holder, path)) from None
                time.sleep(0.1)
            except OSError:
                return False
            else:
                return True
        return False

    @property
    def _descriptor(self) -> int:
        assert self._file is not None
        return self._file

    def _write(self, text: str) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)
        os.fsync(self._descriptor)

    def _beat(self, path: Path) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(path)


def me() -> dict[str, Any]:
    """This process, so that another can tell whether it still runs."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "ticks": _ticks(os.getpid())}


def alive(process: Mapping[str, Any]) -> bool | None:
    """Whether the process that `me` described runs; None where that cannot be known: on another machine."""
    if process.get("host") != socket.gethostname():
        return None
    try:
        os.kill(int(process["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return process.get("ticks") in (None, _ticks(int(process["pid"])))


def _ticks(pid: int) -> int | None:
    """When the process started, by the kernel's clock: numbers of processes are used again, with this they are not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _holder(path: Path) -> Mapping[str, Any] | None:
    """Who the file says holds the lock."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):  # empty: released; torn: whoever wrote it did not start
        return None
    return holder if isinstance(holder, dict) else None


def _gone(holder: Mapping[str, Any], path: Path, sure: bool) -> bool:
    """Whether a holder's process is no more. sure: the kernel's lock is ours, so no process of this machine has it."""
    runs = alive(holder)
    if runs is None:
        return _silence(path) > SILENT
    return sure or not runs


def _silence(path: Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system."""
    probe = path.with_name(f"{NAME}-{os.getpid()}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now - path.stat().st_mtime


def _named(holder: Mapping[str, Any]) -> str:
    return f"pid {holder.get('pid')} on {holder.get('host')}, started {holder.get('started')}"


def _refusal(directory: Path, holder: Mapping[str, Any] | None, path: Path) -> str:
    who = "another process" if holder is None else _named(holder)
    if holder is not None and alive(holder) is None:
        end = f"if it is dead, wait {SILENT / 60:.0f} minutes from its end, or remove {path}"
    elif holder is not None and alive(holder) is False:
        end = "that process is dead, but children of it still run: end them"
    else:
        end = "stop it, or give another directory"
    return f"{directory}: another run works here ({who}): {end}"
