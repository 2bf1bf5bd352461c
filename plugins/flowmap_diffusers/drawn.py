"""Random weights, each tensor drawn on its own, so that nobody needs more of a network than what it keeps."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn

from flowmap.seeding import generator

CPU = torch.device("cpu")
EVEN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@frozen
class Drawn:
    """A tensor as torch first makes it for its layer, float32, as if it were in a file.

    Its numbers are those of a generator keyed by (seed, name), on the CPU: the same in every process and on every
    device, whatever else is drawn. scale: of uniform numbers in [-scale, scale], or of normal ones; None for `fill`.
    """

    key: bytes
    shape: torch.Size
    scale: float | None
    normal: bool = False
    fill: float = 0.0

    def __getitem__(self, rows: slice) -> Tensor:
        made = torch.empty(self.shape)
        if self.scale is None:
            return made.fill_(self.fill)[rows]
        if self.normal:
            return made.normal_(0.0, self.scale, generator=generator(self.key, CPU))[rows]
        return made.uniform_(-self.scale, self.scale, generator=generator(self.key, CPU))[rows]


def drawn(net: nn.Module, seed: int) -> dict[str, Drawn]:
    """Every parameter of `net`, which may be on the meta device, by name."""
    found = {}
    for prefix, layer in net.named_modules():
        for own, p in layer.named_parameters(recurse=False):
            name = f"{prefix}.{own}" if prefix else own
            found[name] = _of(layer, own, p, f"{seed} {name}".encode())
    return found


def _of(layer: nn.Module, own: str, p: Tensor, key: bytes) -> Drawn:
    if isinstance(layer, EVEN):
        return Drawn(key, p.shape, layer.weight[0].numel() ** -0.5)  # one over the root of the inputs
    if p.dim() != 1:  # tables, embeddings
        return Drawn(key, p.shape, p.shape[-1] ** -0.5, normal=True)
    return Drawn(key, p.shape, None, fill=float(own == "weight"))  # a norm
