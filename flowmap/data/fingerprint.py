"""What tells data from other data."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Fingerprinted(Protocol):
    """Data, or a source of it, that can tell itself from others. Not a part of `Data`: nobody has to."""

    def fingerprint(self) -> str | None: ...


def fingerprint(data: object) -> str | None:
    """sha256 of what training sees; None where the data does not tell."""
    return data.fingerprint() if isinstance(data, Fingerprinted) else None
