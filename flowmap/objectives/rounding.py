"""What a target loses where the network that it is made of computes in less than float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._types import Latent, Mean, Rng, Shared
from ..model import FlowMap

NEARBY = 0x4EA2
"""What a point near z_t is drawn from `rng.fork` by."""


@torch.no_grad()
def rounding(
    u: FlowMap, z: Latent, rng: Rng, shared: Shared, part: Tensor, learnt: Tensor, again: Callable[[Latent], Tensor]
) -> dict[str, Mean]:
    """{"rounding": mean square of what rounding changes in a target, over that of what there is to learn}.

    Nothing, unless `shared` asks for it and u computes in less than float32.

    part: of the target, what a derivative of u at z has made; again: the same from another z. It is asked about a point
    so near that u can just tell it from z, and rounds anew: the two parts differ by two errors of rounding, and by
    little else. So no second network in float32 is needed, and u may be in pieces over ranks or recomputed.
    learnt: what there is to learn, of the samples that have a derivative.
    """
    if not shared.measuring or u.precision.itemsize >= torch.float32.itemsize:
        return {}
    near = z * (1 + torch.finfo(u.precision).eps * rng.fork(NEARBY).noise_like(z))
    error = (again(near) - part) / 2**0.5
    return {"rounding": Mean(error.square().sum(), learnt.square().sum())}
