"""The semigroup identity: a jump is two jumps."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from attrs import field, frozen
from torch import Tensor

from flowmap import Batch, Rng, validators
from flowmap._types import Mean, Role, Shared, Time, nullify
from flowmap.guidance import Exact, Guidance
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.path import expand, interpolate, shift, unshift
from flowmap.reweights import Reweight, reweighted, unbalanced
from flowmap.times import TimeSampler, Triangle, roles


class Split(Protocol):
    """Where a jump t -> r is cut in two."""

    def __call__(self, t: Time, r: Time, rng: Rng) -> tuple[Time, Tensor]:
        """(s, short): r <= s <= t, and a mask [B] of those whose halves are short enough to follow the velocity."""


@frozen
class Middle:
    """s halfway on the clock before the shift, so that dyadic grids are cut into dyadic grids.

    Halves of at most `finest` on that clock are Euler steps; the shortest jump is then flow matching's to teach.
    """

    shift: float = field(default=1.0, validator=validators.gt(0.0))
    finest: float = field(default=0.0, validator=[validators.ge(0.0), validators.lt(1.0)])

    def __call__(self, t: Time, r: Time, rng: Rng) -> tuple[Time, Tensor]:
        start, end = unshift(t, self.shift), unshift(r, self.shift)
        return shift((start + end) / 2, self.shift), (start - end) / 2 <= self.finest * (1 + 1e-3)


@frozen
class Anywhere:
    """s uniform in [r, t]."""

    def __call__(self, t: Time, r: Time, rng: Rng) -> tuple[Time, Tensor]:
        return r + (t - r) * rng.uniform(len(t), t), torch.zeros_like(t, dtype=torch.bool)


@frozen
class SemigroupMatching:
    """Flow-map matching with two jumps of the student's own, arXiv:2410.12557 and arXiv:2505.18825:

        u_θ(z_t, t, r)  ≈  sg[ λ u_θ(z_t, t, s) + (1 - λ) u_θ(z_s, s, r) ],
        λ = (t - s) / (t - r),        z_s = z_t - (t - s) u_θ(z_t, t, s).

    It says nothing of the velocity u_θ(z, t, t), which another objective teaches, guidance with it. clip: the largest
    absolute value that an element of z_s may have. 1 G and 2 F.
    """

    times: TimeSampler = Triangle(0.0, 0.0)
    split: Split = Middle()
    reweight: tuple[Reweight, ...] = field(default=(), validator=unbalanced)
    guidance: Guidance = Exact(w=1.0, drop=0.0)
    clip: float = field(default=math.inf, validator=validators.gt(0.0))

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u_θ, guide, n = nets["student"], self.guidance, len(batch)
        x, c = u_θ.teacher_forcing(batch.x, batch.cond, rng)
        c = nullify(c, batch.null, rng.uniform(n, x) < guide.drop)
        t, r = self.times(n, rng, x)
        z, _ = interpolate(x, rng.noise_like(x), t)

        u = u_θ(z, t, r, c)
        with torch.no_grad():
            s, short = self.split(t, r, rng)
            u_ts = u_θ(z, t, torch.where(short, t, s), c)
            z_s = (z - expand(t - s, z) * u_ts).clamp(-self.clip, self.clip)
            u_sr = u_θ(z_s, s, torch.where(short, s, r), c)
            λ = expand((t - s) / (t - r).clamp_min(torch.finfo(t.dtype).tiny), z)
            y = λ * u_ts + (1 - λ) * u_sr
        raw = (u - y).square().flatten(1).mean(1)

        loss = reweighted(raw, t, r, self.reweight, shared)
        logs = {f"loss/{role}": Mean.of(raw, mask) for role, mask in roles(t, r).items()}
        return Loss(guide.weight * loss.mean(), logs, raw.detach().isfinite(), nonfinite(data=x, student=raw))
