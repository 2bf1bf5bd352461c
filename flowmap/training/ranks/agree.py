"""What ranks do together: each works for itself, and all know how it went before any goes on.

A rank that caught an error of its own and left the others waiting in a collective would hang them. Here the outcome of
every rank is exchanged instead, and where one failed all raise the same error. In one process these are plain calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


class RankError(Exception):
    """Work of some rank failed; `errors` is (rank, error) of each."""

    def __init__(self, errors: list[tuple[int, str]]) -> None:
        self.errors = errors
        many = ranks() > 1
        super().__init__("; ".join(f"rank {rank}: {error}" if many else error for rank, error in errors))


AGAIN = "the same call goes on from the last checkpoint"


class LostRankError(Exception):
    """Another rank is no more, or has not answered in time, which is as `Distribution.timeout` says."""

    def __init__(self, error: BaseException, rank: int, seconds: float) -> None:
        waited = f"while rank {rank} waited for it in {_during[0]}"
        late = any(word in str(error).lower() for word in ("timed out", "timeout"))
        super().__init__(
            f"another process of this job has not answered within {seconds:g} s {waited}: it stalls, or needs longer "
            f"(Distribution.timeout, or FLOWMAP_TIMEOUT); this one ends, and {AGAIN}"
            if late
            else f"another process of this job has ended {waited}, and this one ends, too. The first cause is what "
            f"that one said, and the exit code that torchrun reports; {AGAIN}"
        )


_during = ["its start"]


def during(what: str) -> None:
    """Say what this process does from now on: what it waits for, if it waits in vain."""
    _during[0] = what


def lost(error: BaseException) -> bool:
    """Whether an exchange failed for a rank that is not there. gloo has no type of its own for it."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def ranks() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def everywhere(work: Callable[[], T]) -> list[T]:
    """What `work` gives on every rank, by rank; a `RankError` on all of them where it raised an Exception."""
    value: T | None = None
    error: str | None = None
    try:
        value = work()
    except Exception as e:
        error = said(e)
    outcomes: list[tuple[T, str | None]] = [(value, error)] * ranks()  # type: ignore[list-item]
    if ranks() > 1:
        distributed.all_gather_object(outcomes, (value, error))
    if errors := [(k, e) for k, (_, e) in enumerate(outcomes) if e is not None]:
        raise RankError(errors)
    return [v for v, _ in outcomes]


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank; the others wait for it."""
    return everywhere(lambda: work() if rank() == 0 else None)[0]  # type: ignore[return-value]


def anywhere(*flags: bool) -> tuple[bool, ...]:
    """Each flag: whether it is set on any rank. One small exchange between processors; no accelerator waits for it."""
    if ranks() == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised.tolist())


def said(error: BaseException) -> str:
    """In a line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
