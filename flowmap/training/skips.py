"""Steps that came to nothing: left out, since something was not finite, or of no gradient. How many, and why.

All of it is kept on the device, so that a good step waits for nothing; who reads it waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Self, get_args

import torch
from attrs import define, field, frozen
from torch import Tensor

from .._types import Mean, Role
from ..objectives import Loss, within
from .ranks.agree import everywhere

MAX_SKIPPED = 5  # optimiser steps in a row that may come to nothing
FEW = 8  # samples: of smaller global batches more steps may have no gradient, where all pairs happen to be learnt
NAMED = 8  # samples, of each rank


class Why(IntEnum):
    """Of a step that came to nothing. All but the last are left out."""

    NOT_FINITE = 1  # a loss or the gradient
    NOTHING_LEFT = 2  # of an objective, which counts samples as zero where it is given what is not finite
    NO_GRADIENT = 3  # exactly zero


SAID = {
    Why.NOT_FINITE: "the {role}'s loss or gradient was not finite",
    Why.NOTHING_LEFT: "the {role} was left without a sample that counts",
    Why.NO_GRADIENT: "the {role}'s gradient was exactly zero",
}


@frozen
class Origin:
    """The last step that came to nothing. samples: of losses that were not finite, in the data, by rank.

    No samples: every loss was finite. blamed: by network, or "data", how many samples' part of what it gave was the
    first that was not finite; see `objectives.nonfinite`.
    """

    why: Why
    iteration: int
    samples: Sequence[Sequence[int]] = ()
    blamed: Mapping[str, int] = field(factory=dict)
    times: int = MAX_SKIPPED

    def told(self, role: Role, lr: float, when: str) -> str:
        """That it was so too often, where the last time, and what to do."""
        often = f"{SAID[self.why].format(role=role)} {self.times} times in a row, by {when}"
        return f"{often}; the last time in iteration {self.iteration}{self._where(role)}: {self._advice(role, lr)}"

    def _where(self, role: Role) -> str:
        if self.why is Why.NO_GRADIENT:
            return ""
        what, culprit = "", self._culprit
        if self.why is Why.NOT_FINITE:
            many = len(self.samples) > 1
            found = [f"of {_said(its)}{f' on rank {k}' * many}" for k, its in enumerate(self.samples) if its]
            what = f", the loss {' and '.join(found)}" if found else ", the gradient, of losses that were finite"
        if culprit is None or (culprit == role and what):
            return what
        return f"{what}, since what the {culprit} gave was not finite"

    def _advice(self, role: Role, lr: float) -> str:
        if self.why is Why.NO_GRADIENT:
            return (
                "nothing is trained; look at the weights of its terms, and at whether its target is what it is already"
            )
        if self._culprit in {*get_args(Role), "data"} - {role}:
            return f"look at the {self._culprit}"
        return f"lower its lr ({lr}) or look at the data"

    @property
    def _culprit(self) -> str | None:
        return max(self.blamed, key=lambda name: self.blamed[name]) if any(self.blamed.values()) else None


@define
class Skips:
    """Of one role on one rank. counts: [2] in a row, and the most in a row since the last look.

    last: [2 + n] of the last step that came to nothing its iteration, why, and which of the n samples of the global
    batch had a loss that was not finite, as far as this rank had them. blamed: what `Origin` has of it. nonfinite: by
    network, the share of the samples so far of which it gave what was not finite, of all ranks.
    """

    counts: Tensor
    last: Tensor
    blamed: dict[str, Tensor] = field(factory=dict, init=False)
    nonfinite: dict[str, Mean] = field(factory=dict, init=False)
    bad: Tensor = field(init=False)  # [n] the samples of this step
    losses: Tensor = field(init=False)  # [] this step's losses that were not finite
    seen: dict[str, Mean] = field(init=False)  # what this step's losses say of networks, by term and part
    skipped: Tensor = field(init=False)  # [] 1 where the last step was left out, on all ranks, and 0 where not

    @classmethod
    def of(cls, samples: int, device: torch.device) -> Self:
        none = torch.tensor([0.0, Why.NOT_FINITE, *[0.0] * samples], device=device)  # of a streak before a resume
        return cls(torch.zeros(2, device=device), none)

    def begin(self) -> None:
        self.bad, self.losses, self.seen = torch.zeros_like(self.last[2:]), torch.zeros_like(self.last[0]), {}

    def saw(self, loss: Loss, term: int, positions: Sequence[int]) -> None:
        """A loss of this step. positions: of its samples in the global batch."""
        wrong, place = ~loss.value.detach().isfinite(), list(positions)
        each = torch.zeros_like(self.bad[place]) if loss.finite is None else (~loss.finite).to(self.bad)
        self.bad[place] += torch.where(each.any(), each, wrong.to(self.bad)) * wrong
        self.losses += wrong
        for name, mean in within(term, loss.nonfinite).items():
            self.seen[name] = self.seen[name] + mean if name in self.seen else mean

    @property
    def sums(self) -> Tensor:
        """[n] what is to be added up over ranks, for `end`."""
        return torch.stack([self.losses, *(part for _, m in sorted(self.seen.items()) for part in (m.total, m.count))])

    def end(self, iteration: int, length: Tensor, sums: Tensor) -> Tensor:
        """[] `skipped`. length: of the step's gradient; sums: over all ranks."""
        totals, counts = sums[1:].reshape(-1, 2).unbind(1)
        found = {name: Mean(*pair) for name, *pair in zip(sorted(self.seen), totals, counts, strict=True)}
        wrong, left = ~length.isfinite() | (sums[0] > 0), self._nothing_left(found)
        why = torch.where(wrong, Why.NOT_FINITE, torch.where(left, Why.NOTHING_LEFT, (length == 0) * Why.NO_GRADIENT))
        self.skipped, nothing = (wrong | left).float(), why > 0
        self.counts[0] = (self.counts[0] + torch.where(why == Why.NO_GRADIENT, self._weight, 1.0)) * nothing
        self.counts[1] = torch.maximum(self.counts[1], self.counts[0])
        now = torch.cat([torch.stack([torch.full_like(self.losses, iteration), why.to(self.losses)]), self.bad])
        self.last.copy_(torch.where(nothing, now, self.last))
        self._blame(found, nothing)
        return self.skipped

    @property
    def _weight(self) -> float:
        """What a step without a gradient counts."""
        return min(1.0, len(self.bad) / FEW)

    def _nothing_left(self, found: Mapping[str, Mean]) -> Tensor:
        """[] whether a part of the step's objectives has samples, and what it was given was finite for none."""
        parts = dict[str, Mean]()
        for name, mean in found.items():
            part = name.rpartition("/")[0]
            parts[part] = Mean(parts[part].total + mean.total, mean.count) if part in parts else mean
        empty = [(mean.total == mean.count) & (mean.count > 0) for mean in parts.values()]
        return torch.stack(empty).any() if empty else torch.zeros_like(self.losses, dtype=torch.bool)

    def _blame(self, found: Mapping[str, Mean], nothing: Tensor) -> None:
        now = dict[str, Mean]()
        for name, mean in found.items():
            network = name.rpartition("/")[2]
            now[network] = now[network] + mean if network in now else mean
        for network in {**self.blamed, **now}:
            none = torch.zeros_like(self.losses)
            mean = now.get(network, Mean(none, none))
            self.blamed[network] = torch.where(nothing, mean.total, self.blamed.get(network, none))
            self.nonfinite[network] = self.nonfinite.get(network, Mean(none, none)) + mean

    def looked(self) -> None:
        self.counts[1] = self.counts[0]

    def state(self) -> dict[str, tuple[float, float]]:
        """For a checkpoint, of `nonfinite`. Waits for the device."""
        return {network: (float(mean.total), float(mean.count)) for network, mean in sorted(self.nonfinite.items())}

    def restore(self, in_a_row: int, nonfinite: Mapping[str, Sequence[float]]) -> None:
        """What a checkpoint says. The next step counts from there, and a good one forgets it."""
        self.counts.copy_(torch.tensor([in_a_row, 0]))
        self.nonfinite = {network: Mean(*self.counts.new_tensor(pair)) for network, pair in nonfinite.items()}

    @property
    def in_a_row(self) -> int:
        """Waits for the device."""
        return int(self.counts[0])

    def origin(self, samples: Callable[[int], Sequence[int]]) -> Origin:
        """Of the last step that came to nothing; every rank must ask. samples: the global batch of an iteration."""
        iteration, why, *bad = self.last.tolist()
        own = [sample for sample, wrong in zip(samples(int(iteration)), bad, strict=True) if wrong]
        blamed = {network: int(count) for network, count in self.blamed.items()}
        times = math.ceil(MAX_SKIPPED / (self._weight if int(why) == Why.NO_GRADIENT else 1.0))
        return Origin(Why(int(why)), int(iteration), everywhere(lambda: own), blamed, times)


def _said(samples: Sequence[int]) -> str:
    more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
    return f"sample{'s' * (len(samples) > 1)} {', '.join(map(str, samples[:NAMED]))}{more}"
