"""Tensors of which every rank holds a piece."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def in_pieces(x: object) -> TypeGuard[DTensor]:
    """Whether x is a `DTensor`. Until its module is imported there is none, and asking imports nothing: it is large."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)
