"""What batches come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from .._types import Batch
from ..model import FlowMapSpec


@runtime_checkable
class Data(Protocol):
    """Samples by index, on the CPU."""

    def __len__(self) -> int: ...

    def batch(self, index: Sequence[int]) -> Batch: ...


@runtime_checkable
class Source(Protocol):
    """Makes the data for a backbone, for example by encoding clips once, so that training holds no encoder."""

    def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> Data:
        """`cache`: a directory for what is worth keeping, None for nowhere."""
