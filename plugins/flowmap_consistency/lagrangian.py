"""The Lagrangian identity: the end of a jump moves with the velocity that is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field, frozen

from flowmap import Batch, Rng, validators
from flowmap._types import Mean, Role, Shared, nullify, require_null
from flowmap.derivative import EndDerivative, EndForwardMode
from flowmap.guidance import Exact, Guidance
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.objectives.rounding import rounding
from flowmap.path import interpolate
from flowmap.reweights import Reweight, reweighted, unbalanced
from flowmap.times import TimeSampler, Triangle, roles


@frozen
class LagrangianMatching:
    """Flow-map matching in the end time, arXiv:2406.07507 and arXiv:2505.18825:

        ∂_r Φ_{r←t}(z_t)  ≈  sg[ v(Φ_{r←t}(z_t), r) ],        Φ_{r←t}(z) = z - (t - r) u_θ(z, t, r).

    v is the student's own velocity u_θ(·, r, r), which another objective teaches and which has guidance in it, or with
    `velocity="teacher"` the teacher's, guided here. No derivative is taken in z.

    through: the gradient goes through ∂_r Φ = u - (t - r) ∂_r u, 1 GJ and 1 F. Without, it goes through u alone,
    u ≈ sg[v + (t - r) ∂_r u], 1 G, 1 J and 1 F: the limit of matching Φ_{r-δ←t} with a step of v from Φ_{r←t}.
    F is of the network whose v it is, two of a guided teacher.
    """

    times: TimeSampler = Triangle(0.0, 0.0)
    derivative: EndDerivative = EndForwardMode()
    reweight: tuple[Reweight, ...] = field(default=(), validator=unbalanced)
    guidance: Guidance = Exact(w=1.0, drop=0.0)
    velocity: Literal["student", "teacher"] = field(default="student", validator=validators.in_(("student", "teacher")))
    through: bool = True

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", self.velocity})

    @property
    def guides(self) -> Mapping[Role, float]:
        if self.velocity == "teacher":
            return {"teacher": self.guidance.w}
        return {} if self.guidance.w == 1.0 else {"student": self.guidance.w}

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u_θ, guide, n = nets["student"], self.guidance, len(batch)
        x, c = u_θ.teacher_forcing(batch.x, batch.cond, rng)
        if batch.cond:
            require_null(batch.null, guide.w)
        null, c = nullify(c, batch.null), nullify(c, batch.null, rng.uniform(n, x) < guide.drop)
        t, r = self.times(n, rng, x)
        z, _ = interpolate(x, rng.noise_like(x), t)

        if self.through:
            f, df = self.derivative(u_θ, z, t, r, c)
        else:
            u = u_θ(z, t, r, c)
            with torch.no_grad():
                f, df = self.derivative(u_θ, z, t, r, c)
            df = u + (df - u).detach()  # the value of ∂_r Φ, the gradient of u
        with torch.no_grad():
            w = guide.w if self.velocity == "teacher" else 1.0
            v = nets[self.velocity].velocity(f, r, c, null, w)
        raw = (df - v).square().flatten(1).mean(1)

        loss = reweighted(raw, t, r, self.reweight, shared)
        logs = {f"loss/{role}": Mean.of(raw, mask) for role, mask in roles(t, r).items()}
        logs |= rounding(
            *(u_θ, z, rng, shared, df.detach(), (df - v).detach()), lambda near: self.derivative(u_θ, near, t, r, c)[1]
        )
        bad = nonfinite(**{"data": x, "student": df, self.velocity: raw})
        return Loss(guide.weight * loss.mean(), logs, raw.detach().isfinite(), bad)
