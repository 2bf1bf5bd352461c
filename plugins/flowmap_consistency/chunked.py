"""What a student makes of every chunk in one call, each at a noise level of its own, after clean history."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from attrs import field, frozen
from torch import Tensor

from flowmap import FlowMap, Rng
from flowmap._types import Cond, Latent, Time
from flowmap.path import interpolate


def levels(times: Sequence[float]) -> tuple[float, ...]:
    return tuple(times)


def decreasing(instance: object, attribute: object, times: tuple[float, ...]) -> None:
    if not times or times[0] > 1.0 or any(a <= b for a, b in pairwise((*times, 0.0))):
        raise ValueError(
            f"{type(instance).__name__}.times = {times}: must decrease strictly, from 1 at most to above 0"
        )


def draw(n: int, times: Tensor, rng: Rng) -> Tensor:
    """[n] which of `times`, uniform, for every sample on its own."""
    return (rng.uniform(n, times) * len(times)).long().clamp_max(len(times) - 1)


def sweep(u: FlowMap, z: Sequence[Latent], t: Sequence[Time], x: Latent, cond: Cond) -> Latent:
    """x̂ of all frames: chunk k is one jump 0 <- t[k] from z[k], its history the chunks of x before it.

    Without a gradient through the history. In one piece, where the network makes all frames at once.
    """
    made: list[Latent] = []
    cache = None
    for k, clean in enumerate(x.split(u.chunks(x.shape[1]), dim=1)):
        made.append(u.jump(z[k], t[k], torch.zeros_like(t[k]), cond, cache))
        with torch.no_grad():
            cache = u.extend(cache, clean, cond) if k + 1 < len(z) else None
    return torch.cat(made, dim=1)


@frozen
class NoisedData:
    """The rollout of data: x at one of `times` a chunk and sample, and one jump to data each; all differentiable."""

    times: tuple[float, ...] = field(converter=levels, validator=decreasing)
    x: Latent = field(repr=False)

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        times, sizes = torch.tensor(self.times, device=noise.device), u.chunks(noise.shape[1])
        t = [times[draw(len(noise), times, rng)] for _ in sizes]
        parts = zip(self.x.split(sizes, dim=1), noise.split(sizes, dim=1), t, strict=True)
        return sweep(u, [interpolate(*part)[0] for part in parts], t, self.x, cond)
