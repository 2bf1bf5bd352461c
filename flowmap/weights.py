"""Reweights of a per-sample loss: [B] -> [B]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import torch
from attrs import field, frozen
from torch import Tensor

from . import validators
from ._types import Shared, Time
from .path import shift

positive = validators.gt(0.0)


class Reweight(Protocol):
    def __call__(self, loss: Tensor, t: Time, r: Time, shared: Shared) -> Tensor: ...


def reweighted(loss: Tensor, t: Time, r: Time, reweights: Sequence[Reweight], shared: Shared) -> Tensor:
    """[B] `loss` after all of them, one after the other; what each shares over the global batch is its own."""
    for number, reweight in enumerate(reweights):
        with shared.at(number):
            loss = reweight(loss, t, r, shared)
    return loss


@frozen
class Ramp:
    """A factor that grows from 0 over the first `steps` iterations of a stage and stays at `top`; at once, for 0."""

    steps: int = field(default=0, validator=validators.ge(0))
    top: float = field(default=1.0, validator=validators.ge(0.0))

    def __call__(self, iteration: int) -> float:
        return min(self.top, iteration / self.steps) if self.steps else self.top


@frozen
class Beta:
    """t^a (1 - t)^b at the shifted t, of mean one where t = shift(U(0, 1)).

    The default is "beta08" of AnyFlow, arXiv:2605.13724: for shift 5, 3.657 t sqrt(1 - t).
    """

    a: float = 1.0
    b: float = 0.5
    shift: float = field(default=5.0, validator=positive)

    def __call__(self, loss: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return loss * self.weight(t) / _mean(self.weight, self.shift)

    def weight(self, t: Time) -> Tensor:
        return t**self.a * (1 - t) ** self.b


@frozen
class Gaussian:
    """exp(-2 (t - ½)²) - exp(-½), normalised as `Beta` is: the paper's other choice."""

    shift: float = field(default=5.0, validator=positive)

    def __call__(self, loss: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return loss * self.weight(t) / _mean(self.weight, self.shift)

    def weight(self, t: Time) -> Tensor:
        return (-2 * (t - 0.5) ** 2).exp() - torch.tensor(-0.5).exp().to(t)


@cache
def _mean(weight: Callable[[Time], Tensor], s: float) -> float:
    """Over 1000 intervals, by the trapezoid rule: the reference's normalisation, to 1000 over the 1001 points."""
    return float(torch.trapezoid(weight(shift(torch.linspace(0, 1, 1001, dtype=torch.float64), s)), dx=1e-3))


@frozen
class Adaptive:
    """loss / sg(loss + c)^p, with the loss a mean over elements. MeanFlow, arXiv:2505.13447, section 4.3."""

    p: float = 1.0
    c: float = field(default=1e-3, validator=positive)

    def __call__(self, loss: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return loss / (loss.detach() + self.c) ** self.p


@frozen
class Normalised:
    """loss / (sg(√loss) + c): the gradient g of a sample's loss with respect to u becomes g / (‖g‖ + c).

    The normalised tangent of sCM, arXiv:2410.11081, section 4.1, but that ‖·‖ is a root mean square over elements.
    """

    c: float = field(default=0.1, validator=positive)

    def __call__(self, loss: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return loss / (loss.detach().sqrt() + self.c)


@frozen
class Balanced:
    """Off the diagonal, every sample weighs what the diagonal weighs on average: loss · sg(μ / (loss + c)).

    μ is the mean over the diagonal samples of the global batch; where there are none, or where the batch comes in
    several micro-batches, the last iteration's; where there has been none ever, a sample weighs 1. So it is exact on
    any number of ranks. Each `Balanced` has a mean of its own, by the role, the update, the term and the reweight that
    it is: one whose objective never samples the diagonal has none. AnyFlow, arXiv:2605.13724.
    After it the loss reads μ whatever the error: log the raw loss by role.
    """

    c: float = field(default=1e-5, validator=positive)

    def __call__(self, loss: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        on, fixed = t == r, loss.detach()
        mu = shared.mean("diagonal", fixed, on)
        mu = torch.where(mu.isfinite(), mu, fixed + self.c)
        return torch.where(on, loss, loss * mu / (fixed + self.c))
