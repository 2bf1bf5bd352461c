"""Muon (https://kellerjordan.github.io/posts/muon/) for matrices, AdamW for all else: torch's own of both.

    B ← μ B + (1 − μ) G        O = NS((1 − μ) G + μ B)        W ← (1 − η λ) W − η s O

G: the gradient of a matrix [a, b]. NS: five Newton–Schulz steps in bfloat16, towards the nearest orthogonal matrix.
η: lr; λ: weight_decay; s: 0.2 √max(a, b), by which an update is as large as AdamW's (arXiv:2502.16982), or
√max(1, a / b).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor, nn

from . import validators
from .recipe import AdamW, positive

MATRIX = 2  # dimensions of what torch's Muon takes


@frozen
class Muon(AdamW):
    """Muon for the matrices among what is trained, adapters' A and B too, and `AdamW` for the rest. In one process.

    lr, weight_decay, warmup, schedule, floor, clip: of all, but for `adamw_lr`, the learning rate of the rest, and
    `betas`, which are AdamW's. momentum: μ. adjust: s, as torch names it.
    """

    momentum: float = field(default=0.95, validator=validators.and_(validators.ge(0.0), validators.lt(1.0)))
    adjust: Literal["match_rms_adamw", "original"] = field(
        default="match_rms_adamw", validator=validators.in_(("match_rms_adamw", "original"))
    )
    adamw_lr: float = field(default=5e-5, validator=positive)


class MuonAdamW(torch.optim.Optimizer):
    """`found_inf`: not 0 where a step is to change nothing, as of torch's fused kernels, which Muon does not know.

    A Muon a matrix, so that only of this one what it was is there.
    """

    found_inf: Tensor | None = None

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Muon) -> None:
        lr, decay, parameters = settings.adamw_lr, settings.weight_decay, [*parameters]
        matrices, rest = ([p for p in parameters if (p.ndim == MATRIX) == flat] for flat in (True, False))
        own = partial(torch.optim.Muon, lr=settings.lr, momentum=settings.momentum, weight_decay=decay)
        self.muons = [own([p], adjust_lr_fn=settings.adjust) for p in matrices]
        self.adamw = torch.optim.AdamW(rest, lr, settings.betas, weight_decay=decay, fused=True) if rest else None
        groups = [group for muon in self.muons for group in muon.param_groups]
        if self.adamw is not None:
            groups += [group | {"initial_lr": lr} for group in self.adamw.param_groups]
            self.adamw.param_groups = groups[len(self.muons) :]
        super().__init__(groups, {})
        for each in (*self.muons, *filter(None, [self.adamw])):
            each.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for muon in self.muons:
            self._step(muon, *muon.param_groups[0]["params"])
        if self.adamw is not None:
            self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
            self.adamw.step()

    def _step(self, muon: torch.optim.Muon, p: Tensor) -> None:
        if p.grad is None:
            return
        if self.found_inf is None:
            muon.step()
            return
        before = self.state[p].get("momentum_buffer")
        was = p.clone(), torch.zeros_like(p) if before is None else before.clone()
        muon.step()
        for now, old in zip((p, self.state[p]["momentum_buffer"]), was, strict=True):
            now.copy_(torch.where(self.found_inf > 0, old, now))
