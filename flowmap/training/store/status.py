"""How a run goes: `status.json`, written whole or not at all, and what to make of it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs
from attrs import field, frozen

from ...kind import half, kind, own
from ..forecast import Left, clock
from . import health
from .lock import alive

FILE = "status.json"
NOTES = 20
NONFINITE = "nonfinite"  # role/nonfinite/network in a record: the share of samples of which what it gave was not finite
State = Literal["running", "evaluating", "preempted", "failed", "finished"]


class StatusError(Exception):
    """There is no run in a directory, or its status cannot be read."""


def _row(notes: Iterable[str]) -> tuple[str, ...]:
    return tuple(notes)


@frozen
class Status:
    """stage: counted from 0, as are iterations; step: iterations of it that are done, of `steps`.

    method: of the stage. reason: why it ended early. resumable: whether the same call goes on from a checkpoint, or
    starts again where there is none yet. checkpoint: the newest that was published and read again. hash: sha256 of
    what was trained, once finished; saved: in what type it is on disk, and what that loses. notes: what went wrong and
    was survived, the last few. command: what started it. nonfinite: what is not 0 of such shares, by
    stage/role/nonfinite/network.
    """

    state: State
    host: str
    pid: int
    ticks: int | None = None
    started: str = ""
    updated: float = 0.0  # seconds since 1970
    began: float = 0.0  # likewise
    spent: float = 0.0  # seconds, by earlier starts
    left: float = 0.0  # seconds, of what is known how fast it goes
    uncounted: tuple[str, ...] = field(default=(), converter=_row)  # the parts of which that is not known
    command: str = ""
    stage: int | None = None
    stages: int | None = None
    method: str | None = None
    step: int | None = None
    steps: int | None = None
    checkpoint: str | None = None
    reason: str | None = None
    resumable: bool = True
    hash: str | None = None
    saved: str | None = None
    notes: tuple[str, ...] = field(default=(), converter=_row)
    nonfinite: Mapping[str, float] = field(factory=dict)

    def noted(self, text: str) -> Status:
        return attrs.evolve(self, notes=(*self.notes, text)[-NOTES:])

    @property
    def took(self) -> float:
        """Seconds from its beginning to the last sign of life."""
        return max(0.0, self.updated - self.began) if self.began else 0.0

    @property
    def lost(self) -> bool:
        """It says that it goes on, and its process is no more: killed, or the machine went down."""
        return self.state in ("running", "evaluating") and alive(attrs.asdict(self)) is False


def read(run: Path) -> Status:
    try:
        found = json.loads((run / FILE).read_text())
        known = {f.name for f in attrs.fields(Status)}
        return Status(**{name: value for name, value in found.items() if name in known})
    except FileNotFoundError:
        raise StatusError(f"{run}: there is no {FILE} in it, so it is no run directory") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StatusError(f"{run / FILE} cannot be read: {error}") from None


def spent(run: Path) -> float:
    """Seconds that the starts so far have taken, to be told by the next one."""
    try:
        found = read(run)
    except StatusError:
        return 0.0
    return found.spent + found.took


def command() -> str:
    """What started this process, to be given again."""
    program, *arguments = sys.argv
    names = ("flowmap", "__main__.py")
    start = ["flowmap"] if os.path.basename(program) in names else ["python", program]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        ranks = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
        start = ["torchrun", "--nproc-per-node", ranks, *(["-m"] if start == ["flowmap"] else []), start[-1]]
    return shlex.join([*start, *again(arguments)])


def again(arguments: Sequence[str]) -> list[str]:
    """What goes on with what `arguments` began: to restart would begin once more."""
    return [one for one in arguments if one != "--restart"]


def lines(run: Path) -> dict[str, str]:
    """What `flowmap status` prints, by its heading."""
    status = read(run)
    told = {"state": _state(status)}
    if status.stage is not None:
        done = status.stages if status.state == "finished" else status.stage
        now = "" if status.state == "finished" else f"; now stage {status.stage}, {status.method}"
        told["stage"] = f"{done} of {status.stages} done{now}"
        told["step"] = f"{status.step} of {status.steps}"
    there = sorted(p.name for p in (run / "checkpoints").glob("step_*") if p.suffix != ".corrupt")
    told["checkpoint"] = status.checkpoint or (f"{there[-1]}, of an earlier start" if there else "none yet")
    told["process"] = f"pid {status.pid} on {status.host}, started {status.started}"
    if status.updated:
        told["updated"] = f"{_ago(time.time() - status.updated)} ago"
    told |= dict(_times(status))
    if (sound := health.line(run)) is not None:
        told["health"] = sound
    for number, (name, share) in enumerate(status.nonfinite.items(), 1):
        stage, role, _, network = name.split("/")
        whose = f"{share:.2g} of the {role}'s samples in stage {stage}"
        told[f"not finite {number}"] = f"what the {network} gave, for {whose}; they do not count"
    if status.reason is not None:
        told["reason"] = status.reason
    for number, note in enumerate(status.notes, 1):
        told[f"note {number}"] = note
    if status.hash is not None:
        told["hash"] = status.hash
    if status.saved is not None:
        told["saved"] = status.saved
    if (after := _next(status, run)) is not None:
        told["next"] = after
    return told


def _state(status: Status) -> str:
    if status.lost:
        return f"killed? It says {status.state}, but its process is no more"
    if status.state in ("running", "evaluating") and alive(attrs.asdict(status)) is None:
        return f"{status.state}, it says; whether its process lives is known on {status.host} alone"
    return status.state


def _times(status: Status) -> Iterator[tuple[str, str]]:
    """How long it has taken and, of one that goes on, will take."""
    on = status.state in ("running", "evaluating") and not status.lost
    since = time.time() - (status.updated or status.began) if on else 0.0
    if status.began:
        before = f", and {clock(status.spent)} in earlier starts" if status.spent >= 1 else ""
        yield "elapsed", f"{clock(status.took + since)}{before}"
    if on and (status.left or status.uncounted):
        yield "left", Left(max(1.0, status.left - since) if status.left else 0.0, status.uncounted).told()


def _next(status: Status, run: Path) -> str | None:
    on = f"go on with: {status.command}"
    if status.lost or status.state == "preempted":
        return on
    if status.state == "failed":
        return f"mend what the reason says, then {on}" if status.resumable else "it kept nothing: start it again"
    if status.state == "finished" and (run / "student").is_dir():
        if kind(run / "student") == "half":
            return f"it is {half(run / 'student')}"
        if own(run / "student"):
            return f"flowmap.load({str(run / 'student')!r}), in Python: the card beside it says how"
        return f"flowmap sample {shlex.quote(str(run / 'student'))} --prompt '...'"
    return None


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"
