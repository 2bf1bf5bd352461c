"""Classifier-free guidance made part of the student, v_∅ + w (v_c - v_∅); w = 1 is none.

A guidance says what the regression of `FlowMapMatching` compares,

    implied(u, u_∅)  ≈  sg[ v̂ - (t - r) / scale · D_v̂ u ],      v̂ = velocity(v, u_∅),   u_∅ = u_θ(z_t, t, end | ∅),

and with which probability a sample's prompt is dropped, so that the student knows ∅ at all.
"""

from __future__ import annotations

from typing import Protocol

import torch
from attrs import field, frozen, validators
from torch import Tensor

from ._types import Latent, Time
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
