"""Two networks that know one side of a time each, as one flow map: Wan2.2 A14B, arXiv:2503.20314."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, final, runtime_checkable

import torch
from torch import nn

from ._types import Cache, Cond, Latent, Rng, Time
from .model import FlowMap, Recorded
from .path import expand, renoise
from .window import Window


@final
class TwoExperts(FlowMap):
    """One flow map of two, by composition at the boundary b. For t > b > r

        Φ_{r←t} = Φ^low_{r←b} Φ^high_{b←t},
        u(z_t, t, r) = [(t - b) u^high(z_t, t, b) + (b - r) u^low(z_b, b, r)] / (t - r),    z_b = Φ^high_{b←t}(z_t).

    `high` is asked for b <= r <= t alone, `low` for r <= t <= b, so it is exact where each is on its own side: which
    of them is asked is not t's to say alone, as the high one has never been told what lies below b. On the diagonal at
    b it is the high one. One call of one network, but where a batch lies on both sides or a jump crosses: a sampler's
    grid has b in it, see `euler_grid`. Both must make the same chunks; a history is the pair of theirs.
    """

    def __init__(self, high: FlowMap, low: FlowMap, boundary: float) -> None:
        if not 0.0 < boundary < 1.0:
            raise ValueError(f"TwoExperts: boundary = {boundary}: must be above 0 and below 1")
        super().__init__()
        self.high, self.low, self.b, self.boundary = high, low, boundary, boundary
        self.guidance = high.guidance if high.guidance == low.guidance else None

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        if not isinstance(cache, Recorded):
            return self._of_one(z, t, r, cond, *_both(cache))
        past, own = _both(cache.before)
        high, low, (before, _) = self.high.recording(past), self.low.recording(own), _both(cache.after)
        assert high is not None and low is not None
        u = self._of_one(z, t, r, cond, high, low)
        found = before if high.after is None else high.after, low.after
        # whole with the low one's last call; the high one's comes before, and the low one then has nothing yet
        cache.after = None if None in found and bool((r < self.b).any()) else found
        return u

    def _of_one(self, z: Latent, t: Time, r: Time, cond: Cond, past: Cache, own: Cache) -> Latent:
        b = self.b
        below = r < b
        if not below.any():
            return self.high(z, t, r, cond, past)
        if bool((below & (t <= b)).all()):
            return self.low(z, t, r, cond, own)
        # times on the other side are moved to b, where an expert makes no step
        top, stop, start, end = t.clamp_min(b), r.clamp_min(b), t.clamp_max(b), r.clamp_max(b)
        first, then = top - stop, start - end
        above = self.high(z, top, stop, cond, past)
        z_b = torch.where(expand(first > 0, z), z - expand(first, z) * above, z)
        under = self.low(z_b, start, end, cond, own)
        share = torch.where(t == r, (~below).to(t), first / torch.where(t == r, 1.0, first + then))
        u = expand(share, z) * above + expand(1 - share, z) * under
        return torch.where(expand(share == 1, z), above, torch.where(expand(share == 0, z), under, u))

    def chunks(self, frames: int) -> tuple[int, ...]:
        sizes, theirs = self.high.chunks(frames), self.low.chunks(frames)
        if sizes != theirs:
            raise ValueError(f"the high expert makes chunks of {sizes}, the low one of {theirs}: must be the same")
        return sizes

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        high, low = _both(cache)
        found = self.high.extend(high, x, cond), self.low.extend(low, x, cond)
        return None if found == (None, None) else found

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        high, low = _both(cache)
        return self.high.extend_noisy(high, z, t, cond), self.low.extend_noisy(low, z, t, cond)

    def recording(self, cache: Cache) -> Recorded | None:
        """Given to the last call of each: an expert remembers what its own last call was given, at its own times."""
        there = all(u.recording(None) is not None for u in (self.high, self.low))
        return Recorded(cache) if there else None

    def unrecorded(self, frames: int) -> str | None:
        return self.high.unrecorded(frames) or self.low.unrecorded(frames)

    def bound(self, window: Window) -> None:
        self.high.bound(window)
        self.low.bound(window)

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        return self.low.teacher_forcing(x, cond, rng)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [*self.high.blocks, *self.low.blocks]

    def trained(self) -> Mapping[str, nn.Parameter]:
        """Of the low one: a run that trains that one has the pair. The names are those of the low one alone."""
        return self.low.trained()

    def thaw(self) -> None:
        self.low.thaw()


def _both(cache: Cache) -> tuple[Cache, Cache]:
    high, low = (None, None) if cache is None else cache
    return high, low


def phased_step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """From t above the boundary b jump to b, from t <= b to data; then noise again up to r, `flowmap.path.renoise`.

    The sampler of two experts each of which knows the jump to the end of its own phase, arXiv:2510.27684. Where r < b,
    z_b gets no noise and is the low one's input at r, as if it were at r; at b itself where the grid has b, as
    `euler_grid` has. The last step, r = 0, ends at data. Of one network it is the consistency sampler.
    """
    b = 1.0 if u.boundary is None else u.boundary
    s = torch.where((t > b) & (r > 0), b, torch.zeros_like(t))
    return renoise(u.jump(z, t, s, cond, cache), rng.noise_like(z), s, torch.maximum(r, s))


def fewest(u: FlowMap) -> int:
    """The least number of steps that `flowmap.sample` takes."""
    return 1 if u.boundary is None else 2


@runtime_checkable
class Walks(Protocol):
    """What samples students in these numbers of steps."""

    @property
    def steps(self) -> tuple[int, ...]: ...


def too_few_steps(boundary: float | None, judge: object) -> list[str]:
    """What is wrong where a student of two experts is to be sampled in one step."""
    if boundary is None or not isinstance(judge, Walks) or min(judge.steps) > 1:
        return []
    return [
        f"the evaluation has steps = {judge.steps}: must be at least 2, as a student of two experts takes one of each"
    ]
