"""An average of the trained tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define
from torch import Tensor, nn

from ..recipe import Ema


@define
class Average:
    """float32, whatever the dtype of the weights; a copy of them until `ema.start`."""

    ema: Ema
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, trained: Mapping[str, nn.Parameter], ema: Ema) -> Average:
        return cls(ema, {name: p.detach().to(torch.float32, copy=True) for name, p in trained.items()})

    @torch.no_grad()
    def update(self, trained: Mapping[str, nn.Parameter], iteration: int) -> None:
        weight = 1.0 if iteration < self.ema.start else 1.0 - self.ema.decay
        now = [trained[name].detach().float() for name in self.tensors]
        torch._foreach_lerp_(list(self.tensors.values()), now, weight)

    @torch.no_grad()
    def copy_to(self, trained: Mapping[str, nn.Parameter]) -> None:
        for name, tensor in self.tensors.items():
            trained[name].copy_(tensor)
