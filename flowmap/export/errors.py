"""What can be wrong with an export, each a kind of its own, said in one sentence before a back end sees anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Outside(Protocol):
    """Which dimension, of what size, and in words what it must be, in units of so many of its own."""

    @property
    def name(self) -> str: ...

    @property
    def found(self) -> int: ...

    def allowed(self, unit: int = 1) -> str: ...


class ExportError(Exception):
    """An export cannot be made, or cannot be used."""


class MissingPackageError(ExportError):
    """A back end's library is not installed; the sentence has the line that installs it."""


class NoDeviceError(ExportError):
    """Made for a GPU, and there is none here."""


class ArchitectureError(ExportError):
    """Made for other GPUs than the one here."""


class VersionError(ExportError):
    """Made with another release of a library, one that this release cannot read."""


class ProfileError(ExportError):
    """A dimension of an input is not in the range that the export was made for; outside: which, where it has a name."""

    def __init__(self, text: str, outside: Outside | None = None) -> None:
        super().__init__(text)
        self.outside = outside


class DtypeError(ExportError):
    """An input has another type than the export takes, or is on another device."""


class CorruptError(ExportError):
    """A file is missing, or is not the one that was written."""


class NotExportedError(ExportError):
    """The directory holds no finished export."""


class BackendError(ExportError):
    """A back end's library gave up; the cause is the library's own error."""


class LintError(ExportError):
    """A graph has something in it that inference engines do not take."""


class ParityError(ExportError):
    """What was built computes something else than the student; nothing was left behind."""


@contextmanager
def failing(what: str) -> Iterator[None]:
    """What a library raises is its own; what people read is a sentence."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "")
        raise BackendError(f"{what}: {type(error).__name__}: {said}") from error
