"""Flow-map matching: learn u_θ(z_t, t, r) from its own derivative."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor

from .. import validators
from .._types import (
    NOTHING,
    Batch,
    Cache,
    Cond,
    Latent,
    Mean,
    Rng,
    Role,
    Shared,
    Time,
    nullify,
    require_null,
    select,
    to_device,
)
from ..derivative import CentralDifference, Derivative
from ..guidance import Exact, Guidance
from ..model import FlowMap
from ..path import expand, interpolate
from ..reweights import Ramp, Reweight, expected, reweighted
from ..times import Diagonal, TimeSampler, end_of, roles
from . import Loss, Networks, Ordered, nonfinite
from .rounding import rounding

TIMES = 0x714E5
"""What (t, r) are drawn from `rng.fork` by: known before the batch is."""
Velocity: TypeAlias = Literal["data", "teacher", "student"]


@frozen
class FlowMapMatching(Ordered):
    r"""The MeanFlow identity (arXiv:2505.13447, eq. 6) as a regression:

        u_θ(z_t, t, r)  ≈  sg[ v̂ - ϱ (t - r) d/dt u_θ(z_t, t, r) ],      d/dt along v̂.

    r = t is flow matching, r = 0 is continuous-time consistency training. v̂ is ε - x with `guidance` built in, or
    with `velocity="teacher"` the teacher's guided velocity, which has no noise of its own, or with "student" the
    learning network's, u_θ(z_t, t, t), which says nothing on the diagonal: that is another objective's to teach.
    `warmup` is ϱ, 1 unless the derivative is to come in slowly. `role` is the network that learns: the teacher in a
    stage that fine-tunes it.

    Calls a sample: 1 G, 1 F for guidance where the prompt is there (of all on several ranks), or for the network's own
    velocity, 2 F for the derivative of those off the diagonal, without a causal network's history where it is kept;
    none of the F builds a graph. Raw losses are logged by role, before any reweight. Where the network computes in less
    than float32, "rounding" is logged when `shared` asks for it, for 2 F more: the mean square of the target's error by
    it, over that of v̂ - u.

    Given z_t, the guided velocity of the data is the teacher's and w (ε - x - v_c), of mean zero: so with the teacher's
    the loss lacks w² ‖ε - x - v_c‖² of what it would be with the data's. Reweights are told this noise; see `Balanced`.
    With "student" v_c is the velocity itself, and the noise an upper bound of that.
    """

    times: TimeSampler = Diagonal()
    derivative: Derivative = CentralDifference()
    reweight: tuple[Reweight, ...] = ()
    guidance: Guidance = Exact(w=1.0, drop=0.0)
    velocity: Velocity = field(default="data", validator=validators.in_(("data", "teacher", "student")))
    role: Role = "student"
    warmup: Ramp = Ramp()

    def __attrs_post_init__(self) -> None:
        if self.velocity != "data" and self.guidance.scale != 1.0:
            raise ValueError(
                f"FlowMapMatching.guidance = {self.guidance} with velocity = '{self.velocity}': the {self.velocity}'s "
                "velocity is guided already; use Exact"
            )

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({self.role, "teacher"} if self.velocity == "teacher" else {self.role})

    def first(self, n: int, rng: Rng) -> Tensor:
        t, r = self._pairs(n, rng)
        return t == r

    def _pairs(self, n: int, rng: Rng) -> tuple[Time, Time]:
        return self.times(n, rng.fork(TIMES), NOTHING)

    @property
    def guides(self) -> Mapping[Role, float]:
        if self.velocity == "teacher":
            return {"teacher": self.guidance.w}
        return {} if self.guidance.w == 1.0 else {self.role: self.guidance.w}

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u_θ, guide, n = nets[self.role], self.guidance, len(batch)
        if self.velocity == "data" or batch.cond:
            require_null(batch.null, guide.w)
        x, c = u_θ.teacher_forcing(batch.x, batch.cond, rng)
        dropped = rng.uniform(n, NOTHING) < guide.drop
        asked = _indices(~dropped, shared)
        t, r = self._pairs(n, rng)
        off = (t != r).nonzero()[:, 0]
        dropped, asked, t, r, off = (to_device(a, x.device) for a in (dropped, asked, t, r, off))
        null, c = nullify(c, batch.null), nullify(c, batch.null, dropped)
        z, v = interpolate(x, rng.noise_like(x), t)

        kept = u_θ.keeping(off) if len(off) else None
        u = u_θ(z, t, r, c, kept)
        with torch.no_grad():
            u_null, noise = u, None
            if self.velocity != "data":
                source = nets["teacher"] if self.velocity == "teacher" else u_θ
                v_c, v_null = source.branches(z, t, c, null, guide.w if self.velocity == "teacher" else 1.0, asked)
                noise = self._noise(v - v_c, t, r, dropped, shared)
                v = v_null + guide.w * (v_c - v_null)
            elif guide.w != 1.0:
                u_null = u.detach().clone()
                if len(asked):
                    end = guide.end(t, r)[asked]
                    u_null[asked] = u_θ(z[asked], t[asked], end, select(null, asked)).to(u_null.dtype)
                v = guide.velocity(v, u_null, dropped)
            ϱ = self.warmup(shared.iteration)
            gap, du = expand(t - r, v) / guide.scale, self._derivative(u_θ, z, t, r, v, c, off, kept, shared)
            y = v - gap * ϱ * du if ϱ else v  # no factor 0: a du that is not finite is out
        raw = (guide.implied(u, u_null) - y).square().flatten(1).mean(1)

        loss = reweighted(raw, t, r, self.reweight, shared, noise)
        logs = {f"loss/{role}": Mean.of(raw, mask) for role, mask in roles(t, r, end_of(self.times)).items()}
        logs |= rounding(
            *(u_θ, z, rng, shared, gap * du, (v - u.detach())[off]),
            lambda near: gap * self._derivative(u_θ, near, t, r, v, c, off, kept, shared),
        )
        bad = nonfinite(**{"data": x} | ({"teacher": v} if self.velocity == "teacher" else {}) | {self.role: raw})
        return Loss(guide.weight * loss.mean(), logs, raw.detach().isfinite(), bad)

    def _noise(self, off: Latent, t: Time, r: Time, dropped: Tensor, shared: Shared) -> Tensor | None:
        """[B] what the loss would have more with the data's velocity; off: ε - x - v_c."""
        if not self.reweight:
            return None
        noise = expected(off.square().flatten(1).mean(1), t, t == r, shared)
        return torch.where(dropped, noise, self.guidance.w**2 * noise)

    def _derivative(
        self, u: FlowMap, z: Latent, t: Time, r: Time, v: Latent, c: Cond, off: Tensor, kept: Cache, shared: Shared
    ) -> Tensor:
        """d/dt u of the samples `off` the diagonal; zero elsewhere, at no cost. kept: of those, by a call before.

        On several ranks the call is made for one sample where there is none: to be in step with the other ranks.
        """
        du = torch.zeros_like(v)
        some = off if len(off) or shared.ranks == 1 else torch.zeros(1, dtype=torch.long, device=z.device)
        if len(some):
            call = u if kept is None else partial(u, cache=kept)
            found = self.derivative(call, z[some], t[some], r[some], v[some], select(c, some)).to(du.dtype)
            du[off] = found[: len(off)]
        return du


def _indices(mask: Tensor, shared: Shared) -> Tensor:
    """Of the samples where `mask` [B]; all of them on several ranks, to be in step with the others."""
    return mask.nonzero()[:, 0] if shared.ranks == 1 else torch.arange(len(mask))
