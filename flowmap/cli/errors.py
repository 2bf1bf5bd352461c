"""Errors of a user in one sentence, without a traceback."""

from __future__ import annotations

from attrs import frozen


class UsageError(Exception):
    """What was asked for cannot be done; nothing was started."""


@frozen
class Said:
    text: str
    code: int


def sentence(error: Exception) -> Said | None:
    """What to say and the exit code: 2 for a wrong request, 1 for what went wrong while working; None for a defect."""
    if isinstance(error, UsageError):
        return Said(str(error), 2)
    from ..data import DataError
    from ..distill import RecipeError
    from ..model import ConditionError
    from ..plugins import PluginError
    from ..training.checkpoint import CheckpointError
    from ..training.loop import TrainingError

    if isinstance(error, (RecipeError, PluginError, CheckpointError, DataError, ConditionError)):
        return Said(str(error), 2)
    if isinstance(error, TrainingError):
        return Said(str(error), 1)
    if isinstance(error, OSError):
        return Said(_of_files(error), 1)
    return None


def _of_files(error: OSError) -> str:
    """`runs/x: Permission denied`; libraries that raise OSError of their own fill in neither number nor file."""
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error).strip().partition("\n")[0]
