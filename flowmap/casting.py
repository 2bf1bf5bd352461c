"""The parameters of a network in another type, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def changed(u: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While entered, every parameter p of `u` holds change(p); then it holds what it held. Nothing is trained."""
    held = [(p, p.data) for p in u.parameters()]
    try:
        for p, data in held:
            p.data = change(data)
        yield
    finally:
        for p, data in held:
            p.data = data


def rounded(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """To `dtype`, and back to the type that it is in."""
    return lambda p: p.to(dtype).to(p.dtype)
