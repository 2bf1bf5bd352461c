"""What the published samplers of the networks here share: they go from noise, τ = 0, to data, τ = 1."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor


class LatentPipeline(DiffusionPipeline):
    """Of a transformer and a scheduler alone: its encoders are not here."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def walked(self, z: Tensor, times: Tensor, **given: Any) -> Tensor:
        """Euler steps of dz/dτ = v along `times`, without guidance."""
        for now, then in pairwise(times.to(z.device)):
            v = self.transformer(hidden_states=z, timestep=now.expand(len(z)), **given, return_dict=False)
            z = z + (then - now) * (v[0] if isinstance(v, tuple) else v)
        return z
