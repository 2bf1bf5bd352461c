"""An average of the trained tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define
from torch import Tensor, nn

from ..recipe import Ema
from .ranks.reduction import local


@define
class Average:
    """float32, whatever the dtype of the weights; a copy of them until `ema.start`. Sharded as they are."""

    ema: Ema
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, trained: Mapping[str, nn.Parameter], ema: Ema) -> Average:
        return cls(ema, {name: p.detach().to(torch.float32, copy=True) for name, p in trained.items()})

    @torch.no_grad()
    def update(self, trained: Mapping[str, nn.Parameter], iteration: int, skip: Tensor | None = None) -> None:
        """average <- (1 - w) average + w weights; skip: [] where it is not 0, w is 0. No device is waited for."""
        weight = 1.0 if iteration < self.ema.start else 1.0 - self.ema.decay
        average = [local(tensor) for tensor in self.tensors.values()]
        now = [local(trained[name].detach()).float() for name in self.tensors]
        w = weight if skip is None else torch.where(skip > 0, 0.0, weight)
        torch._foreach_mul_(average, 1 - w)
        torch._foreach_add_(average, torch._foreach_mul(now, w))

    @torch.no_grad()
    def copy_to(self, trained: Mapping[str, nn.Parameter]) -> None:
        for name, tensor in self.tensors.items():
            trained[name].copy_(tensor)
