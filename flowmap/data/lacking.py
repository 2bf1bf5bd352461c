"""What data lacks on the disk, before anything is loaded."""

from __future__ import annotations

from .fingerprint import fingerprint
from .format import DataError
from .mixed import Mixed
from .sized import Sized
from .source import Source


def lacking(data: object) -> list[str]:
    """A sentence of every part that its source cannot tell from others; [] of what is no source."""
    if isinstance(data, Mixed):
        return [text for part in data.parts for text in lacking(part)]
    if isinstance(data, Sized):
        return lacking(data.source)
    try:  # a source looks at its files to tell itself from others
        _ = fingerprint(data) if isinstance(data, Source) else None
    except (DataError, OSError) as error:
        return [str(error)]
    return []
