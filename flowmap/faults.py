"""Faults on request: how the tests kill a run at a chosen place. Without `FLOWMAP_FAULT` in the environment, nothing.

    FLOWMAP_FAULT=save.after_data            kill -9 of the process that first gets there
    FLOWMAP_FAULT=student.after:3            ... the third time that it does
    FLOWMAP_FAULT=save.shard:2-4:nospace@1   no space left, the second to the fourth time, on rank 1 alone

Actions are `kill`, `exit` (with code 17), `raise`, `nospace` (the OSError of a full disk), `quota`, `readonly`, `term`
and `usr1` (that signal to oneself), `stall` (a second; `stall8`: eight). Several faults are separated by commas.
Nothing here is random: a fault that was survived once is survived again.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter

ERRORS = {"nospace": errno.ENOSPC, "quota": errno.EDQUOT, "readonly": errno.EROFS}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}
FORM = re.compile(
    r"(?P<point>[a-z_.]+)(:(?P<first>\d+)(?P<on>-(?P<last>\d*))?)?(:(?P<action>[a-z0-9]+))?(@(?P<rank>\d+))?"
)
STALL = 1.0  # seconds

_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """The run is at `point`; what `FLOWMAP_FAULT` has for it happens now."""
    if faults := os.environ.get("FLOWMAP_FAULT"):
        _reached[point] += 1
        for fault in faults.split(","):
            _inject(fault, point, _reached[point])


def counted(point: str) -> int:
    """How often the run has been there, where there are faults."""
    return _reached[point]


def _inject(fault: str, point: str, count: int) -> None:
    found = FORM.fullmatch(fault)
    if found is None:
        raise ValueError(f"FLOWMAP_FAULT = {fault!r}: must be POINT[:N[-M]][:ACTION][@RANK]")
    first = int(found["first"] or 1)
    last = first if found["on"] is None else int(found["last"] or count)
    if found["point"] != point or not first <= count <= last:
        return
    if found["rank"] is not None and found["rank"] != os.environ.get("RANK", "0"):
        return
    action = found["action"] or "kill"
    if action in ERRORS:
        raise OSError(ERRORS[action], os.strerror(ERRORS[action]), point)
    if action == "raise":
        raise RuntimeError(f"{point}: a fault was asked for")
    if action == "exit":
        os._exit(17)
    if stall := re.fullmatch(r"stall(\d*)", action):
        time.sleep(float(stall[1] or STALL))
    elif action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[action])
    else:
        raise ValueError(f"FLOWMAP_FAULT = {fault!r}: there is no action {action!r}")
