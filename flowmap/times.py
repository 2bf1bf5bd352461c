"""Where to train: distributions of (t, r), 0 <= r <= t <= 1, float32. The shift comes after the draw.

And where to sample: `euler_grid`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor

from . import validators
from ._types import Rng, Time
from .model import Sampling
from .path import shift, unshift

share = validators.and_(validators.ge(0.0), validators.le(1.0))


class Density(Protocol):
    """A distribution on (0, 1): (n, rng, like) -> [n]."""

    def __call__(self, n: int, rng: Rng, like: Tensor) -> Time: ...


class Truncated(Density, Protocol):
    """A distribution on (0, 1) that can be cut off."""

    def between(self, low: Time, high: Time, rng: Rng) -> Time:
        """[n], given that each is above its `low` [n] and below its `high` [n]."""


@frozen
class Uniform:
    """U(0, 1)."""

    def __call__(self, n: int, rng: Rng, like: Tensor) -> Time:
        return rng.uniform(n, like)

    def between(self, low: Time, high: Time, rng: Rng) -> Time:
        return low + (high - low) * rng.uniform(len(high), high)


@frozen
class LogitNormal:
    """sigmoid(mean + std · N(0, 1)), arXiv:2403.03206, eq. 19."""

    mean: float = 0.0
    std: float = field(default=1.0, validator=validators.gt(0.0))

    def __call__(self, n: int, rng: Rng, like: Tensor) -> Time:
        return torch.sigmoid(self.mean + self.std * rng.normal(n, like))

    def between(self, low: Time, high: Time, rng: Rng) -> Time:
        """By the inverse of the distribution function, in float64: far tails are rounded to 0."""
        below, mass = (torch.special.ndtr((s.double().logit() - self.mean) / self.std) for s in (low, high))
        normal = torch.special.ndtri(below + (mass - below) * rng.uniform(len(high), high).double())
        return torch.sigmoid(self.mean + self.std * normal).to(high.dtype)


class TimeSampler(Protocol):
    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        """(t, r), each [n]."""


Span: TypeAlias = tuple[float, float]
"""The times that one network serves: all of them, or, of two experts that part at b, (b, 1) or (0, b)."""
ALL: Span = (0.0, 1.0)


def span(instance: Any, attribute: Any, within: Any) -> None:
    """A validator of a `Span`."""
    pair = isinstance(within, tuple) and len(within) == 2
    if not pair or not 0.0 <= within[0] < within[1] <= 1.0 or (within[0] > 0.0 and within[1] < 1.0):
        raise ValueError(
            f"{type(instance).__name__}.{attribute.name} = {within}: must be (0, 1), or (b, 1) or (0, b), one side of "
            "where two experts part"
        )


def parting(within: Span) -> float | None:
    """Where the experts part; None where there is one network."""
    return within[0] or (within[1] if within[1] < 1.0 else None)


def restricted(density: Truncated, s: float, within: Span, n: int, rng: Rng, like: Tensor) -> Time:
    """[n] of `density`, shifted, given that they are `within`; below a boundary, not on it, where the other one is."""
    if within == ALL:
        return shift(density(n, rng, like), s)
    low, high = torch.tensor(within, device=like.device)
    first, last = (unshift(end.double(), s).clamp(0, 1).to(low).expand(n) for end in (low, high))  # and no last > 1
    top = high if within[1] == 1.0 else torch.nextafter(high, low)
    return shift(density.between(first, last, rng), s).clamp(low, top)


@frozen
class Diagonal:
    """r = t: flow matching. `low` and `high` clamp t after the shift, as shares of the way `within`."""

    density: Truncated = Uniform()
    shift: float = field(default=1.0, validator=validators.gt(0.0))
    low: float = field(default=0.0, validator=share)
    high: float = field(default=1.0, validator=share)
    within: Span = field(default=ALL, validator=span)

    def __attrs_post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"Diagonal.low = {self.low}: must be below high = {self.high}")

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        t = restricted(self.density, self.shift, self.within, n, rng, like)
        start, way = self.within[0], self.within[1] - self.within[0]
        t = t.clamp(start + self.low * way, start + self.high * way if self.high < 1.0 else None)
        return t, t


@frozen
class Triangle:
    """A share on the diagonal r = t, a share on the edge r = 0, the rest free: two draws, sorted.

    within: of one of two experts, both draws are there, and the edge is its end. The shares are stratified over the
    global batch: exact where share · batch is whole, on average where not, so a global batch of one still sees every
    role. AnyFlow, arXiv:2605.13724.
    """

    diagonal: float = field(default=0.5, validator=share)
    edge: float = field(default=0.25, validator=share)
    shift: float = field(default=1.0, validator=validators.gt(0.0))
    density: Truncated = Uniform()
    within: Span = field(default=ALL, validator=span)

    def __attrs_post_init__(self) -> None:
        if self.diagonal + self.edge > 1.0:
            raise ValueError(
                f"Triangle.diagonal + edge = {self.diagonal + self.edge}: the shares must not sum to more than 1"
            )

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        a, b = (restricted(self.density, self.shift, self.within, n, rng, like) for _ in range(2))
        role, t, r = rng.stratified(n, like), torch.maximum(a, b), torch.minimum(a, b)
        r = torch.where(role < self.diagonal + self.edge, torch.full_like(r, self.within[0]), r)
        return t, torch.where(role < self.diagonal, t, r)


@frozen
class Gap:
    """The gap t - r from one density, then r from another cut off at 1 - gap: no pair is on the diagonal.

    AYF, arXiv:2506.14603, whose settings are the defaults; TVM, arXiv:2511.19797, has a logit-normal r.
    """

    gap: Density = LogitNormal(-0.8, 1.0)
    end: Truncated = Uniform()
    shift: float = field(default=1.0, validator=validators.gt(0.0))

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        gap = self.gap(n, rng, like)
        r = self.end.between(torch.zeros_like(gap), 1 - gap, rng)
        return shift((r + gap).clamp_max(1.0), self.shift), shift(r, self.shift)


@frozen
class Dyadic:
    """A step of the grid of 2^k equal steps, k = 0, ..., levels - 1 equally often, each step of it equally likely.

    The levels are stratified over the global batch. Shortcut models, arXiv:2410.12557.
    """

    levels: int = field(default=7, validator=[validators.ge(1), validators.le(20)])
    shift: float = field(default=1.0, validator=validators.gt(0.0))

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        steps = 2.0 ** (self.levels * rng.stratified(n, like)).floor().clamp_max(self.levels - 1)
        i = (steps * rng.uniform(n, like)).floor()
        return shift((i + 1) / steps, self.shift), shift(i / steps, self.shift)


def end_of(times: TimeSampler) -> float:
    """The least r that it draws on purpose: what an edge is."""
    return times.within[0] if isinstance(times, Triangle) else 0.0


def roles(t: Time, r: Time, end: float = 0.0) -> dict[str, Tensor]:
    """Masks [B] by role: diagonal (r = t), edge (r = end < t), free. A sample has exactly one."""
    diagonal = t == r
    edge = (r == end) & ~diagonal
    return {"diagonal": diagonal, "edge": edge, "free": ~diagonal & ~edge}


def euler_grid(steps: int, s: float = 1.0, boundary: float | None = None) -> Tensor:
    """(1 = t_0, ..., t_steps = 0), t_i = shift(1 - i / steps), float32.

    boundary: a time that must be among them, `FlowMap.boundary`. It parts the steps by the share of the way before the
    shift that lies on either side, at least one on each, and they are even there on each.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    if boundary is None:
        return shift(torch.linspace(1, 0, steps + 1), s)
    if steps < 2:
        raise ValueError(
            f"steps = {steps}: must be at least 2, as this network is two experts, which part at t = {boundary:g}, and "
            "each takes a step"
        )
    at = float(unshift(torch.tensor(boundary, dtype=torch.float64), s))
    above = min(max(round(steps * (1 - at)), 1), steps - 1)
    grid = shift(torch.cat([torch.linspace(1, at, above + 1), torch.linspace(at, 0, steps - above + 1)[1:]]), s)
    grid[above] = boundary
    return grid


STEPS = 4
"""Of sampling, where neither a user nor the student says."""


Steps: TypeAlias = int | Sequence[int]
"""A number of steps for every chunk of a video; or one a chunk, [4, 2], of which the last repeats."""
Grid: TypeAlias = Tensor | Sequence[Tensor]
"""Times (1, ..., 0) for every chunk of a video; or those of each chunk, of which the last repeat."""


def of_chunk(grid: Grid, k: int) -> Tensor:
    """The times of chunk k, counted from 0."""
    return grid if isinstance(grid, Tensor) else grid[min(k, len(grid) - 1)]


def corners_of(grids: Sequence[Tensor], rng: Rng) -> list[Tensor]:
    """Of each grid its first time, a step of it, its last time. The step is drawn once, as a part of the way: each of
    a grid's own is as likely, and of grids alike it is the same."""
    steps = [len(grid) - 1 for grid in grids]
    most = math.lcm(*steps)
    place = rng.randint(most)
    at = [place * n // most for n in steps]
    return [torch.stack([g[0], g[i], g[i + 1], g[-1]]).unique().flip(0) for g, i in zip(grids, at, strict=True)]


def told(steps: Steps) -> str:
    """`4`, or `4, 2` of each chunk."""
    return str(steps) if isinstance(steps, int) else ", ".join(map(str, steps))


def grids_of(own: Sampling, steps: Steps | None, s: float, boundary: float | None = None) -> Grid:
    """`grid_of`, of each chunk where `steps` names several numbers. A ValueError where it names none."""
    if steps is None or isinstance(steps, int):
        return grid_of(own, steps, s, boundary)
    if not steps:
        raise ValueError(f"steps = {steps}: must be a number, or one a chunk, such as [4, 2]")
    return tuple(grid_of(own, n, s, boundary) for n in steps)


def grid_of(own: Sampling, steps: int | None, s: float, boundary: float | None = None) -> Tensor:
    """`euler_grid`; but the student's own levels and 0, where `steps` is their number, or None."""
    if own.times is not None and steps in (None, len(own.times)):
        return torch.tensor([*own.times, 0.0])
    return euler_grid(STEPS if steps is None else steps, s, boundary)
