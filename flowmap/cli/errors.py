"""Errors of a user in one sentence, without a traceback."""

from __future__ import annotations

from attrs import frozen


class UsageError(Exception):
    """What was asked for cannot be done; nothing was started. errors: each a sentence."""

    def __init__(self, *errors: str) -> None:
        many = "".join(f"\n  {error}" for error in errors)
        super().__init__(errors[0] if len(errors) == 1 else f"{len(errors)} errors:{many}")


@frozen
class Said:
    text: str
    code: int


def sentence(error: Exception) -> Said | None:
    """What to say and the exit code: 2 for a wrong request, 1 for what went wrong while working; None for a defect."""
    if isinstance(error, UsageError):
        return Said(str(error), 2)
    from ..data import DataError
    from ..export.errors import ExportError, ParityError
    from ..model import ConditionError, WeightsError
    from ..plugins import PluginError
    from ..recipe import RecipeError
    from ..training.agree import LostRankError, RankError
    from ..training.checkpoint import CheckpointError, SaveError
    from ..training.lock import LockError
    from ..training.loop import TrainingError
    from ..training.status import StatusError
    from ..training.tracking import TrackerError

    refused = (RecipeError, PluginError, CheckpointError, DataError, ConditionError, WeightsError)
    if isinstance(error, (*refused, LockError, StatusError, TrackerError)):
        return Said(str(error), 2)
    if isinstance(error, (TrainingError, SaveError, RankError, LostRankError, ParityError)):
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
