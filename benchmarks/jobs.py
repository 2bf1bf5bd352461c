"""Jobs whose results are files: done once, in some processes, the learning rates of a method searched among them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from flowmap.atomic import write_text

ROOT = Path(__file__).parents[1]


class Job(Protocol):
    """A frozen value that can be sent to another process; `str` is a line that tells it from the others of a run."""

    @property
    def found(self) -> Mapping[str, Any] | None:
        """The result, where it is finished."""

    def perform(self) -> None:
        """Do it and write the result."""

    def brief(self) -> str:
        """What came out, in a few words."""


Attempt: TypeAlias = tuple[Job, float, str]


def complete(ready: Callable[[], Iterable[Job]], workers: int, seconds: float = math.inf) -> list[str]:
    """Do what `ready` names, and what it names then, until there is no more; what failed, in words: the others go on.

    workers: processes of one thread each, that keep what they have loaded; 0 is this one. seconds: from now, after
    which no job is begun.
    """
    failed: list[str] = []
    seen: set[str] = set()
    until = time.time() + seconds
    with _processes(workers) as submit:
        pending: set[Future[Attempt]] = set()
        while True:
            new = [job for job in ready() if str(job) not in seen and job.found is None]
            seen |= {str(job) for job in new}
            pending |= {submit(until, job) for job in new}
            if not pending:
                return failed
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for job, spent, error in (one.result() for one in done):
                told = error or job.brief()
                print(f"[{len(seen) - len(pending)}/{len(seen)}]  {job}  {spent:5.0f} s  {told}", flush=True)
                failed += [f"{job}: {error}"] if error else []


@contextmanager
def _processes(number: int) -> Iterator[Callable[[float, Job], Future[Attempt]]]:
    if not number:
        yield _here
        return
    with ProcessPoolExecutor(number, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield partial(pool.submit, _attempt)


def _here(until: float, job: Job) -> Future[Attempt]:
    done: Future[Attempt] = Future()
    done.set_result(_attempt(until, job))
    return done


def _attempt(until: float, job: Job) -> Attempt:
    if time.time() > until:
        return job, 0.0, "not begun: the time is over"
    start = time.monotonic()
    try:
        job.perform()
    except Exception as error:
        return job, time.monotonic() - start, f"{type(error).__name__}: {error}"
    return job, time.monotonic() - start, ""


# ---------------------------------------------------------------------------- learning rates

Score: TypeAlias = Callable[[float], float | None]  # of a factor: None while it is missing, infinite where it diverged


def tried(factors: Sequence[float], more: int, score: Score) -> list[float]:
    """The factors, and beyond the least or the largest where that was best: one at a time, `more` at most.

    As far as they can be known from the scores that are there.
    """
    found = sorted(factors)
    for _ in range(more):
        best = least(found, score)
        if best == found[0]:
            found = [best * found[0] / found[1], *found]
        elif best == found[-1]:
            found = [*found, best * found[-1] / found[-2]]
    return found


def least(factors: Sequence[float], score: Score) -> float | None:
    """The factor of the least score; None while a score is missing, or where none is finite."""
    scores = {factor: value for factor in factors if (value := score(factor)) is not None}
    best = min(scores, key=scores.__getitem__, default=None)
    return best if len(scores) == len(factors) and best is not None and math.isfinite(scores[best]) else None


# ---------------------------------------------------------------------------- files


@cache
def code() -> str:
    """Of the sources that a result depends on beside its recipe."""
    told = hashlib.sha256()
    for file in [*sorted((ROOT / "flowmap").rglob("*.py")), *sorted((ROOT / "plugins").rglob("*.py"))]:
        if "cli" not in file.parts:
            told.update(file.read_bytes())
    return told.hexdigest()[:12]


def key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")
