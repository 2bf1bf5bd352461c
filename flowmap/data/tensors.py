"""Data that fits in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen
from torch import Tensor

from .._types import Batch, Latent
from ..model import sha256


@frozen(eq=False)
class TensorData:
    """x [N, F, C, H, W]; cond: entries [N, ...]; null: the entries that guidance replaces, each [1, ...].

    The default is for networks without conditions.
    """

    x: Latent
    cond: Mapping[str, Tensor] = field(factory=dict)
    null: Mapping[str, Tensor] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if not len(self.x):
            raise ValueError("TensorData.x is empty: there must be at least one sample")
        for name, value in self.cond.items():
            if len(value) != len(self.x):
                raise ValueError(f"TensorData.cond[{name!r}] has {len(value)} samples: x has {len(self.x)}")
        for name, value in self.null.items():
            if name not in self.cond:
                raise ValueError(f"TensorData.null[{name!r}]: cond has only {', '.join(self.cond) or 'no entries'}")
            expected = (1, *self.cond[name].shape[1:])
            if not isinstance(value, Tensor) or value.shape != expected:
                given = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise ValueError(
                    f"TensorData.null[{name!r}] is {given}: must be a tensor {expected}, one row of cond's"
                )

    def __len__(self) -> int:
        return len(self.x)

    def fingerprint(self) -> str:
        named = {f"cond/{name}": value for name, value in self.cond.items()}
        return sha256({"x": self.x, **named, **{f"null/{name}": value for name, value in self.null.items()}})

    def batch(self, index: Sequence[int]) -> Batch:
        rows = list(index)
        return Batch(self.x[rows], {k: v[rows] for k, v in self.cond.items()}, self.null)
