"""Numbers that are one for all ranks: the gradient's norm, gradients of what is not sharded, means for the log.

A tensor is sharded (a DTensor, of which a rank holds its part), or replicated, and then every rank has a gradient of
its own samples until they are added up. In one process nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from ..._types import Mean
from ...pieces import in_pieces
from .agree import ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def local(x: Tensor) -> Tensor:
    """This rank's part, sharing its memory."""
    return x.to_local() if in_pieces(x) else x


def add_up(parameters: Sequence[nn.Parameter]) -> None:
    """The gradients of those that are replicated, over all ranks, in one exchange; sharded ones are summed already."""
    gradients = [p.grad for p in parameters if p.grad is not None and not in_pieces(p)]
    if ranks() == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    for g, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(summed.view_as(g))


def norm(gradients: Sequence[Tensor], sums: Tensor) -> tuple[Tensor, Tensor]:
    """([] the norm of all gradients together, `sums` [n] added up over all ranks): one exchange."""
    if ranks() == 1:
        return _norm(gradients, sums[0]), sums
    sharded = [g for g in gradients if in_pieces(g)]
    own = _norm([local(g) for g in sharded], sums[0]).square() / (_copies(sharded[0]) if sharded else 1)
    both = torch.cat([own.reshape(1), sums])
    distributed.all_reduce(both)
    whole = _norm([g for g in gradients if not in_pieces(g)], sums[0]).square()
    return (both[0] + whole).sqrt(), both[1:]


def clip(gradients: Sequence[Tensor], norm: Tensor, most: float) -> None:
    torch._foreach_mul_([local(g) for g in gradients], (most / (norm + 1e-6)).clamp_max(1.0))


def read(means: Mapping[str, Mean], counters: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    """The means over all ranks, and counters [] that all ranks agree on: one exchange, and one wait for the device."""
    sums = [part.to(device) for mean in means.values() for part in (mean.total, mean.count)]
    summed = torch.stack(sums) if sums else torch.zeros(0, device=device)
    if ranks() > 1:
        distributed.all_reduce(summed)
    numbers = torch.cat([summed, *(c.reshape(1).float() for c in counters.values())]).tolist()
    pairs = zip(numbers[: len(sums) : 2], numbers[1 : len(sums) : 2], strict=True)
    found = {name: total / count if count else float("nan") for name, (total, count) in zip(means, pairs, strict=True)}
    return found | dict(zip(counters, numbers[len(sums) :], strict=True))


def _norm(gradients: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.nn.utils.get_total_norm(gradients).to(like) if gradients else torch.zeros_like(like)


def _copies(x: DTensor) -> int:
    """How many ranks hold the same part: more than one where sharding is hybrid."""
    from torch.distributed.tensor import Shard

    sizes = zip(x.device_mesh.shape, x.placements, strict=True)
    return torch.Size([n for n, placement in sizes if not isinstance(placement, Shard)]).numel()
