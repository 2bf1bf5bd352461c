"""What a run has made, in one number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen
from torch import Tensor, nn

from .._types import Role
from ..model import sha256
from ..pieces import in_pieces

Weights = Mapping[Role, Mapping[str, nn.Parameter]]


def final_hash(weights: Weights) -> str:
    """sha256 of what was trained: of each `role/name`, its type, shape and values; however it was saved or sharded.

    Every rank must call it: what is in shards is gathered, a tensor at a time.
    """
    return sha256(_Whole({f"{role}/{name}": p for role, its in weights.items() for name, p in its.items()}))


@frozen
class _Whole(Mapping[str, Tensor]):
    """Tensors by name, whole as they are asked for."""

    of: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        value = self.of[name].detach()
        return value.full_tensor() if in_pieces(value) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)
