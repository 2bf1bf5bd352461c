"""Derivatives of a flow map: along the flow in the start time, and in the end time.

`Derivative` is d/dt u_θ(z_t, t, r) = v·∂_z u + ∂_t u at fixed r, for Eulerian identities; `EndDerivative` is
∂_r Φ_{r←t}(z_t) at fixed t and z_t, for Lagrangian ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from attrs import field, frozen
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import validators
from ._types import Cond, Latent, Time, concat
from .path import expand

MeanVelocity: TypeAlias = Callable[[Latent, Time, Time, Cond], Latent]  # (z, t, r, cond) -> u; a FlowMap is one


WIDTH = 0.02
"""h, half of a difference's width: what trains best in float32 and in bfloat16, docs/methods.md.

A difference divides by 2 h what u is rounded to, so a smaller one has more noise; it averages over waves of the time
embedding that are shorter than h; and its own error is O(h²).
"""


class Derivative(Protocol):
    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent: ...


@frozen
class CentralDifference:
    """(u(z₊, t₊, r) - u(z₋, t₋, r)) / (t₊ - t₋), with t± = t ± h and z± = z + (t± - t) v: any kernel, 2 F, one call.

    Error O(h²) inside; waves of u in t that are shorter than h are averaged. Times are clamped to [r, 1], so the
    network is never asked beyond the noise or past r, and near a border the difference is one-sided, of error O(h).
    high: in place of 1, where the network's own times end there, as those of the low one of two experts do.
    `clamp=False` is the reference's form. z, v, t and the quotient stay float32: in bfloat16 a step of 5/1000 at t > ½
    becomes 4 or 8. arXiv:2509.04394, AnyFlow.
    """

    h: float = field(default=WIDTH, validator=[validators.gt(0.0), validators.le(0.1)])
    clamp: bool = True
    high: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(1.0)])

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        above, below = t + self.h, t - self.h
        if self.clamp:
            above, below = above.clamp_max(self.high), torch.maximum(below, r)
        ends = [z + expand(s - t, z) * v for s in (above, below)]
        u_above, u_below = u(torch.cat(ends), torch.cat([above, below]), torch.cat([r, r]), concat(cond, cond)).chunk(2)
        return (u_above - u_below) / expand(above - below, z)


@frozen
class OneSided:
    """(u(z_t, t, r) - u(z - h v, t - h, r)) / h, with h at most t - r: 2 F, error O(h)."""

    h: float = field(default=WIDTH, validator=[validators.gt(0.0), validators.le(0.1)])

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        below = torch.maximum(t - self.h, r)
        ends = torch.cat([z, z + expand(below - t, z) * v])
        u_now, u_below = u(ends, torch.cat([t, below]), torch.cat([r, r]), concat(cond, cond)).chunk(2)
        return (u_now - u_below) / expand(t - below, z)


@frozen
class ForwardMode:
    """Exact, with one Jacobian-vector product; attention falls back to the kernel that has a forward-mode rule."""

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        tangents = (v, torch.ones_like(t), torch.zeros_like(r))
        with sdpa_kernel(SDPBackend.MATH):
            du: Latent = torch.func.jvp(lambda z, t, r: u(z, t, r, cond), (z, t, r), tangents)[1]
        return du


@frozen
class Predicted:
    """`derivative` along the velocity that the network itself predicts, u(z_t, t, t), whatever v is: 1 F more.

    Then u + (t - r) D u depends on z_t alone, and not on the sample in it. Improved MeanFlow, arXiv:2512.02012.
    """

    derivative: Derivative = ForwardMode()

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        return self.derivative(u, z, t, r, u(z, t, t, cond), cond)


class EndDerivative(Protocol):
    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, cond: Cond) -> tuple[Latent, Latent]:
        """(Φ_{r←t}(z), ∂_r Φ_{r←t}(z)), with a graph where gradients are on."""


@frozen
class EndForwardMode:
    """Exact, with one Jacobian-vector product in a scalar.

    Its graph runs through attention's plain kernel, and through no block that is recomputed in the backward pass,
    which torch refuses: take `EndDifference` with activation checkpointing.
    """

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, cond: Cond) -> tuple[Latent, Latent]:
        with sdpa_kernel(SDPBackend.MATH):
            Φ = torch.func.jvp(lambda r: z - expand(t - r, z) * u(z, t, r, cond), (r,), (torch.ones_like(r),))
        return Φ[0], Φ[1]


@frozen
class EndDifference:
    """The chord of Φ_{s←t}(z) between s = r ± h, clamped to [0, t], and where it is at r: any kernel, two calls as one.

    Error O(h²) inside, O(h) in the slope at the ends of [0, t].
    """

    h: float = field(default=WIDTH, validator=[validators.gt(0.0), validators.le(0.1)])

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, cond: Cond) -> tuple[Latent, Latent]:
        above, below = torch.minimum(r + self.h, t), (r - self.h).clamp_min(0.0)
        zs, ts, rs = torch.cat([z, z]), torch.cat([t, t]), torch.cat([above, below])
        f_above, f_below = (zs - expand(ts - rs, zs) * u(zs, ts, rs, concat(cond, cond))).chunk(2)
        df = (f_above - f_below) / expand(above - below, z)
        return f_below + expand(r - below, z) * df, df
