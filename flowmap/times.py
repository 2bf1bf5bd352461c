"""Where to train: distributions of (t, r), 0 <= r <= t <= 1, float32. The shift comes after the draw."""

from __future__ import annotations

from typing import Protocol

import torch
from attrs import field, frozen, validators
from torch import Tensor

from ._types import Rng, Time
from .path import shift

share = validators.and_(validators.ge(0.0), validators.le(1.0))


class Density(Protocol):
    """A distribution on (0, 1): (n, rng, like) -> [n]."""

    def __call__(self, n: int, rng: Rng, like: Tensor) -> Time: ...


@frozen
class Uniform:
    """U(0, 1)."""

    def __call__(self, n: int, rng: Rng, like: Tensor) -> Time:
        return rng.uniform(n, like)


@frozen
class LogitNormal:
    """sigmoid(mean + std · N(0, 1)), arXiv:2403.03206, eq. 19."""

    mean: float = 0.0
    std: float = field(default=1.0, validator=validators.gt(0.0))

    def __call__(self, n: int, rng: Rng, like: Tensor) -> Time:
        return torch.sigmoid(self.mean + self.std * rng.normal(n, like))


class TimeSampler(Protocol):
    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        """(t, r), each [n]."""


@frozen
class Diagonal:
    """r = t: flow matching. `low` and `high` clamp t after the shift."""

    density: Density = Uniform()
    shift: float = field(default=1.0, validator=validators.gt(0.0))
    low: float = field(default=0.0, validator=share)
    high: float = field(default=1.0, validator=share)

    def __attrs_post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"Diagonal.low = {self.low}: must be below high = {self.high}")

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        t = shift(self.density(n, rng, like), self.shift).clamp(self.low, self.high)
        return t, t


@frozen
class Triangle:
    """A share on the diagonal r = t, a share on the edge r = 0, the rest free: two draws, sorted.

    AnyFlow, arXiv:2605.13724. The shares are stratified over the global batch: exact where share · batch is whole,
    on average where not, so a global batch of one still sees every role.
    """

    diagonal: float = field(default=0.5, validator=share)
    edge: float = field(default=0.25, validator=share)
    shift: float = field(default=1.0, validator=validators.gt(0.0))
    density: Density = Uniform()

    def __attrs_post_init__(self) -> None:
        if self.diagonal + self.edge > 1.0:
            raise ValueError(
                f"Triangle.diagonal + edge = {self.diagonal + self.edge}: the shares must not sum to more than 1"
            )

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        a, b, role = self.density(n, rng, like), self.density(n, rng, like), rng.stratified(n, like)
        t, r = shift(torch.maximum(a, b), self.shift), shift(torch.minimum(a, b), self.shift)
        r = torch.where(role < self.diagonal + self.edge, torch.zeros_like(r), r)
        return t, torch.where(role < self.diagonal, t, r)


def roles(t: Time, r: Time) -> dict[str, Tensor]:
    """Masks [B] by role: diagonal (r = t), edge (r = 0 < t), free. A sample has exactly one."""
    diagonal = t == r
    edge = (r == 0) & ~diagonal
    return {"diagonal": diagonal, "edge": edge, "free": ~diagonal & ~edge}
