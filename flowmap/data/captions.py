"""What samples show, in words, where the data knows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol, runtime_checkable

from .mixed import MixedData
from .prefetch import Prefetch


@runtime_checkable
class Captioned(Protocol):
    def prompts(self) -> Iterator[str]:
        """Of every sample, in order."""


def captions(data: object, first: int) -> list[str] | None:
    """Of the first so many samples; None of data that keeps no captions."""
    if isinstance(data, Prefetch):
        return captions(data.data, first)
    if isinstance(data, MixedData):
        found: list[str] = []
        for part in data.parts:
            if (own := captions(part, first - len(found))) is None:
                return None
            found += own
        return found
    return list(islice(data.prompts(), first)) if isinstance(data, Captioned) else None
