"""Reweights of a per-sample loss: each a factor [B], through which no gradient flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, Protocol

import torch
from attrs import field, frozen
from torch import Tensor

from . import validators
from ._types import Shared, Time
from .path import shift, unshift
from .times import ALL, Span, span

positive = validators.gt(0.0)


class Reweight(Protocol):
    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        """[B] what a sample's loss is multiplied by.

        loss: [B] with the factors so far, without its gradient. noise: [B] what the loss would have more on average if
        its velocity were that of the data, with the same factors; 0 where it is.
        """


def reweighted(
    loss: Tensor, t: Time, r: Time, reweights: Sequence[Reweight], shared: Shared, noise: Tensor | None = None
) -> Tensor:
    """[B] `loss` times all of them, one after the other; what each shares over the global batch is its own."""
    noise = torch.zeros_like(loss.detach()) if noise is None else noise
    for number, reweight in enumerate(reweights):
        with shared.at(number):
            factor = reweight(loss.detach(), noise, t, r, shared)
        loss, noise = loss * factor, noise * factor
    return loss


BINS, DECAY = 10, 0.98


def expected(noise: Tensor, t: Time, known: Tensor, shared: Shared) -> Tensor:
    """[B] the expectation of a sample's `noise` [B] given t; the `known` [B] samples keep their own.

    A running mean of the known ones in each of `BINS` intervals of t, of decay `DECAY` an iteration: the noise of one
    sample of few elements varies too much to divide by. In an interval where none has been it is the sample's own.
    """
    interval = (t * BINS).long().clamp_max(BINS - 1)
    mask = known[:, None] & (interval[:, None] == torch.arange(BINS, device=t.device))
    mean = shared.mean("noise", noise, mask, DECAY)[interval].to(noise.dtype)
    return torch.where(known | ~mean.isfinite(), noise, mean)


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

    The default is "beta08" of AnyFlow, arXiv:2605.13724: for shift 5, 3.657 t sqrt(1 - t). Of one of two experts the
    mean is over the times `within` its side.
    """

    a: float = 1.0
    b: float = 0.5
    shift: float = field(default=5.0, validator=positive)
    within: Span = field(default=ALL, validator=span)

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return self.weight(t) / _mean(self.weight, self.shift, self.within)

    def weight(self, t: Time) -> Tensor:
        return t**self.a * (1 - t) ** self.b


@frozen
class Gaussian:
    """exp(-2 (t - ½)²) - exp(-½), normalised as `Beta` is: the paper's other choice."""

    shift: float = field(default=5.0, validator=positive)

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return self.weight(t) / _mean(self.weight, self.shift)

    def weight(self, t: Time) -> Tensor:
        return (-2 * (t - 0.5) ** 2).exp() - torch.tensor(-0.5).exp().to(t)


@cache
def _mean(weight: Callable[[Time], Tensor], s: float, within: Span = ALL) -> float:
    """Over 1000 intervals, by the trapezoid rule: the reference's normalisation, to 1000 over the 1001 points."""
    low, high = unshift(torch.tensor(within, dtype=torch.float64), s).tolist()
    return float(torch.trapezoid(weight(shift(torch.linspace(low, high, 1001, dtype=torch.float64), s)), dx=1e-3))


@frozen
class Adaptive:
    """1 / sg(loss + c)^p, with the loss a mean over elements. MeanFlow, arXiv:2505.13447, section 4.3."""

    p: float = 1.0
    c: float = field(default=1e-3, validator=positive)

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return (loss + self.c) ** -self.p


@frozen
class Normalised:
    """1 / (sg(√loss) + c): the gradient g of a sample's loss with respect to u becomes g / (‖g‖ + c).

    The normalised tangent of sCM, arXiv:2410.11081, section 4.1, but that ‖·‖ is a root mean square over elements.
    """

    c: float = field(default=0.1, validator=positive)

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return 1 / (loss.sqrt() + self.c)


@frozen
class Balanced:
    """Off the diagonal, every sample weighs what the diagonal weighs on average: sg(μ / (loss + noise + c)).

    μ is the mean of loss + noise over the diagonal samples of the global batch, which come first where it is in several
    micro-batches: it is exact on any number of ranks. Where there is none it is the last iteration's; where there has
    been none ever, a sample weighs 1. Each `Balanced` has a mean of its own, by the role, the update, the term and the
    reweight that it is: one whose objective never samples the diagonal has none.

    With the data's velocity `noise` is 0, and the loss has that noise in it: AnyFlow, arXiv:2605.13724. A velocity
    without noise, a teacher's, has `noise` in both places, so that the weights are those of the data in expectation.
    Without it μ would be the error of the diagonal alone: 0 for a student that begins as its teacher, and then no
    sample off the diagonal would weigh anything, ever. In μ alone it would leave μ ∇ log loss, whose gradient grows as
    the loss falls.

    by = "sample": every pair (t, r) has its own denominator. by = "batch": the mean of loss + noise off the diagonal,
    over earlier iterations: a plain regression, without the equalisation over (t, r).
    With the data's velocity the loss then reads μ whatever the error: log the raw loss by role.

    `FlowMapMatching` alone tells the noise and has the diagonal come first; others refuse it by `unbalanced`.
    """

    c: float = field(default=1e-5, validator=positive)
    by: Literal["sample", "batch"] = field(default="sample", validator=validators.in_(("sample", "batch")))

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        on, own = t == r, loss + noise
        μ = shared.mean("diagonal", own, on).to(loss.dtype)
        if self.by == "batch":
            own = torch.where(on, own, shared.last("off", own, ~on, DECAY).to(loss.dtype))
        return torch.where(on | ~μ.isfinite() | ~own.isfinite(), torch.ones_like(loss), μ / (own + self.c))


def unbalanced(instance: Any, attribute: Any, reweights: Sequence[Reweight]) -> None:
    """A validator: a ValueError where `Balanced` is among the reweights of an objective that cannot serve it."""
    if any(isinstance(reweight, Balanced) for reweight in reweights):
        name = f"{type(instance).__name__}.{attribute.name}"
        raise ValueError(f"{name} has a Balanced, which needs the noise that FlowMapMatching tells: leave it out")
