"""Classifier-free guidance made part of the student, v_∅ + w (v_c - v_∅); w = 1 is none.

A guidance says what the regression of `FlowMapMatching` compares,

    implied(u, u_∅)  ≈  sg[ v̂ - (t - r) / scale · D_v̂ u ],      v̂ = velocity(v, u_∅),   u_∅ = u_θ(z_t, t, end | ∅),

where a sample's prompt was dropped u_∅ = u, without a call of its own,
and with which probability a sample's prompt is dropped, so that the student knows ∅ at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

import torch
from attrs import field, frozen
from torch import Tensor

from . import validators
from ._types import Cache, Cond, Latent, Rng, Time, concat, nullify, require_null
from .model import FlowMap, Wrapped
from .path import expand
from .times import share

scale_of = validators.ge(1.0)


class Guidance(Protocol):
    @property
    def w(self) -> float:
        """The guidance scale; 1 is none."""

    @property
    def drop(self) -> float:
        """The probability with which a sample's prompt is replaced by the null prompt."""

    @property
    def scale(self) -> float:
        """What the derivative is divided by."""

    @property
    def weight(self) -> float:
        """A factor of the loss: every form has the same gradient on the diagonal where the prompt is kept."""

    def end(self, t: Time, r: Time) -> Time:
        """The end time of the unconditional call."""

    def velocity(self, v: Latent, u_null: Latent, dropped: Tensor) -> Latent: ...

    def implied(self, u: Latent, u_null: Latent) -> Latent: ...


@frozen
class Exact:
    """v̂ = w v + (1 - w) u_θ(z, t, t | ∅): the fixed point is the flow map of the guided velocity.

    Where the prompt was dropped v̂ = v. See docs/methods.md for why the fused form is biased.
    """

    w: float = field(default=3.0, validator=scale_of)
    drop: float = field(default=0.1, validator=share)

    @property
    def scale(self) -> float:
        return 1.0

    @property
    def weight(self) -> float:
        return self.w**-2

    def end(self, t: Time, r: Time) -> Time:
        return t

    def velocity(self, v: Latent, u_null: Latent, dropped: Tensor) -> Latent:
        return torch.where(expand(dropped, v), v, self.w * v + (1 - self.w) * u_null)

    def implied(self, u: Latent, u_null: Latent) -> Latent:
        return u


@frozen
class Fused:
    """The reference's form: regress (u + (w - 1) u_θ(z, t, r | ∅)) / w on the unguided velocity.

    Right on the diagonal; off it the fixed point is not the guided flow map, and few-step samples are biased.
    AnyFlow, arXiv:2605.13724, as its reference code has it.
    """

    w: float = field(default=3.0, validator=scale_of)
    drop: float = field(default=0.1, validator=share)

    @property
    def scale(self) -> float:
        return self.w

    @property
    def weight(self) -> float:
        return 1.0

    def end(self, t: Time, r: Time) -> Time:
        return r

    def velocity(self, v: Latent, u_null: Latent, dropped: Tensor) -> Latent:
        return v

    def implied(self, u: Latent, u_null: Latent) -> Latent:
        return (u + (self.w - 1) * u_null) / self.w


def guided_euler_step(w: float, null: Cond) -> Callable[..., Latent]:
    """An Euler step of the teacher's ODE under classifier-free guidance: two calls, batched as one.

    For a network that makes all frames at once: each branch needs a history of its own, which `Guided` keeps.
    """

    def step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
        if cache is not None:
            raise ValueError(
                "guided_euler_step was given a history, which is of one branch of guidance and not of both: walk "
                "Guided(u, w, null) of flowmap.guidance with euler_step instead"
            )
        return z - expand(t - r, z) * u.velocity(z, t, cond, null, w)

    return step


@final
class Guided(Wrapped):
    """`u` under guidance w as a network of its own, v_∅ + w (v_c - v_∅): both branches in one call.

    For sampling from a teacher, in chunks too: each branch has a history of its own, so the cache is of the doubled
    batch. Off the diagonal it is no flow map of the guided velocity: take `euler_step`.
    """

    def __init__(self, u: FlowMap, w: float, null: Cond) -> None:
        super().__init__(u)
        self.w, self.null = w, null
        if null and w != 1.0:
            u.require_unguided(w)
            self.guidance = w

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        if self._one(cond):
            return self.u(z, t, r, cond, cache)
        both = torch.cat([z, z]), torch.cat([t, t]), torch.cat([r, r]), self._both(cond), cache
        u, u_null = self.u(*both).chunk(2)
        return u_null + self.w * (u - u_null)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        if self._one(cond):
            return self.u.extend(cache, x, cond)
        return self.u.extend(cache, torch.cat([x, x]), self._both(cond))

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        if self._one(cond):
            return self.u.extend_noisy(cache, z, t, cond)
        return self.u.extend_noisy(cache, torch.cat([z, z]), torch.cat([t, t]), self._both(cond))

    def _one(self, cond: Cond) -> bool:
        """Whether the branches are one: without guidance, or without a condition to compare with its absence."""
        if cond:
            require_null(self.null, self.w)
        return not self.null or self.w == 1.0

    def _both(self, cond: Cond) -> Cond:
        return concat(cond, nullify(cond, self.null))
