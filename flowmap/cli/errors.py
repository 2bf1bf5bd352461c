"""Errors of a user in one sentence, without a traceback."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from attrs import frozen

HELD_BACK = 10.0  # seconds: more than the first is ever behind


class UsageError(Exception):
    """What was asked for cannot be done; nothing was started. errors: each a sentence."""

    def __init__(self, *errors: str) -> None:
        many = "".join(f"\n  {error}" for error in errors)
        super().__init__(errors[0] if len(errors) == 1 else f"{len(errors)} errors:{many}")


@frozen
class Said:
    """shared: every process of the job says the same."""

    text: str
    code: int
    shared: bool = False


def after_first() -> None:
    """Under torchrun, let the first process speak: it ends, and torchrun the others before they say the same again.

    Where that one has nothing to say, it comes from another all the same.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        time.sleep(HELD_BACK)


def sentence(error: Exception) -> Said | None:
    """What to say and the exit code: 2 for a wrong request, 1 for what went wrong while working; None for a defect."""
    if isinstance(error, UsageError):
        return Said(str(error), 2, shared=True)
    from ..data import BadClipsError, DataError
    from ..export.errors import ExportError, ParityError
    from ..model import ConditionError, WeightsError
    from ..plugins import PluginError
    from ..recipe import RecipeError
    from ..training.loop import TrainingError
    from ..training.ranks.agree import LostRankError, RankError
    from ..training.store.checkpoint import CheckpointError, SaveError
    from ..training.store.lock import LockError
    from ..training.store.status import StatusError
    from ..training.tracking import TrackerError

    if isinstance(error, BadClipsError):  # the other clips are encoded
        return Said(str(error), 1)
    refused = (RecipeError, PluginError, CheckpointError, DataError, ConditionError, WeightsError)
    if isinstance(error, (*refused, LockError, StatusError, TrackerError)):
        return Said(str(error), 2, shared=True)
    if isinstance(error, RankError):
        return Said(str(error), 1, shared=True)
    if isinstance(error, (TrainingError, SaveError, LostRankError, ParityError)):
        return Said(str(error), 1)
    if isinstance(error, ExportError):
        return Said(str(error), 2)
    if isinstance(error, OSError):
        return Said(_of_files(error), 1)
    return None


def _of_files(error: OSError) -> str:
    """`runs/x: Permission denied`; libraries that raise OSError of their own fill in neither number nor file."""
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error).strip().partition("\n")[0]


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    return f"there is no {kind} {name!r}: must be one of {', '.join(known)}{nearest(name, known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'name'?`, where one of those known is like it."""
    near = get_close_matches(name, [*known], 1)
    return f"; did you mean {near[0]!r}?" if near else ""
