"""Steps that are left out, since a loss or a gradient was not finite: how many, and where that came from.

All of it is kept on the device, so that a good step waits for nothing; who reads it waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from attrs import define, field, frozen
from torch import Tensor

from ..objectives import Loss
from .ranks.agree import everywhere

MAX_SKIPPED = 5  # optimiser steps in a row that a role may skip for what is not finite
NAMED = 8  # samples, of each rank


@frozen
class Origin:
    """Where a step's loss was not finite. iteration: of the last such step. samples: in the data, by rank.

    No samples: every loss was finite, and the gradient was not.
    """

    iteration: int
    samples: Sequence[Sequence[int]]

    def __str__(self) -> str:
        many = len(self.samples) > 1
        found = [f"of {_said(its)}{f' on rank {k}' * many}" for k, its in enumerate(self.samples) if its]
        what = f"the loss {' and '.join(found)}" if found else "the gradient, of losses that were finite"
        return f"the last time in iteration {self.iteration}, {what}"


@define
class Skips:
    """Of one role on one rank. counts: [2] in a row, and the most in a row since the last look.

    last: [1 + n] of the last step that was left out its iteration, and which of the n samples of the global batch were
    to blame, as far as this rank had them.
    """

    counts: Tensor
    last: Tensor
    bad: Tensor = field(init=False)  # [n] the samples of this step
    losses: Tensor = field(init=False)  # [] this step's losses that were not finite
    skipped: Tensor = field(init=False)  # [] 1 where the last step was left out, on all ranks, and 0 where not

    @classmethod
    def of(cls, samples: int, device: torch.device) -> Self:
        return cls(torch.zeros(2, device=device), torch.zeros(1 + samples, device=device))

    def begin(self) -> None:
        self.bad, self.losses = torch.zeros_like(self.last[1:]), torch.zeros_like(self.last[0])

    def saw(self, loss: Loss, positions: Sequence[int]) -> None:
        """A loss of this step. positions: of its samples in the global batch."""
        wrong, place = ~loss.value.detach().isfinite(), list(positions)
        each = torch.zeros_like(self.bad[place]) if loss.finite is None else (~loss.finite).to(self.bad)
        self.bad[place] += torch.where(each.any(), each, wrong.to(self.bad)) * wrong
        self.losses += wrong

    def end(self, iteration: int, skip: Tensor) -> None:
        """The step is over; skip: [] what `skipped` is."""
        self.skipped = skip
        self.counts[0] = (self.counts[0] + 1) * skip
        self.counts[1] = torch.maximum(self.counts[1], self.counts[0])
        now = torch.cat([torch.full_like(self.losses, iteration).reshape(1), self.bad])
        self.last.copy_(torch.where(skip > 0, now, self.last))

    def looked(self) -> None:
        self.counts[1] = self.counts[0]

    def restore(self, in_a_row: int) -> None:
        """What a checkpoint says. The next step counts from there, and a good one forgets it."""
        self.counts.copy_(torch.tensor([in_a_row, 0]))

    @property
    def in_a_row(self) -> int:
        """Waits for the device."""
        return int(self.counts[0])

    def origin(self, samples: Callable[[int], Sequence[int]]) -> Origin:
        """Of the last step that was left out; every rank must ask. samples: the global batch of an iteration."""
        iteration, *bad = self.last.tolist()
        own = [sample for sample, wrong in zip(samples(int(iteration)), bad, strict=True) if wrong]
        return Origin(int(iteration), everywhere(lambda: own))


def _said(samples: Sequence[int]) -> str:
    more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
    return f"sample{'s' * (len(samples) > 1)} {', '.join(map(str, samples[:NAMED]))}{more}"
