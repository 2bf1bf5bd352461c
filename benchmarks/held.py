"""Bytes of tensors that are alive at once, counted: the same on every machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Counts the storage of every tensor that an operation returns, until it is freed; what is there before is free.

    What an operation needs inside itself is not seen.
    """

    def __init__(self, *before: torch.Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.free, key, size).atexit = False

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak(run: Callable[[], object], *before: torch.Tensor) -> int:
    """Bytes, beside those of `before`."""
    with Held(*before) as held:
        run()
    return held.peak
