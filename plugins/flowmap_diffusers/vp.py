"""A variance-preserving diffusion as a flow on the linear path: an exact change of variables.

x_τ = α x + σ ε, α² + σ² = 1, and z_t = (1 - t) x + t ε are one process in other units,

    t = σ / (α + σ),    z_t = x_τ / (α + σ),    α = (1 - t) n,  σ = t n,  n = α + σ = ((1 - t)² + t²)^-½,

because d(x_τ / (α + σ)) = (ε̂ - x̂) dt along the probability flow, whatever the schedule τ -> (α, σ). So, of a network
that says v = α ε - σ x at x_τ = n z,

    u = (2t - 1) n² z + n v(n z, τ),

and one that says ε or x says v = (ε̂ - σ x_τ) / α or (α x_τ - x̂) / σ. The first is not defined where α = 0, the second
where σ = 0: beyond the ends of the schedule, where its step is held, v is made with the α and σ of that step.

A step of DDIM is a step of Euler on the linear path.
"""

from __future__ import annotations

import torch
from attrs import field, frozen
from torch import Tensor

from flowmap import validators
from flowmap.path import expand

PREDICTIONS = ("v_prediction", "epsilon", "sample")
"""As diffusers calls v, ε and x."""


def scale(t: Tensor) -> Tensor:
    """n: x_τ = n z_t."""
    return ((1 - t) ** 2 + t**2).rsqrt()


def velocity(z: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """u = ε - x of the linear path from the v-prediction at x_τ = n z; t broadcasts against z."""
    n = scale(t)
    return (2 * t - 1) * n**2 * z + n * v


def prediction(z: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """The inverse of `velocity`: v."""
    n = scale(t)
    return (u - (2 * t - 1) * n**2 * z) / n


def table(alphas_cumprod: Tensor) -> Tensor:
    """t of every discrete step τ = 0 .. N - 1, increasing, float64."""
    a = alphas_cumprod.double().clamp(0, 1)
    alpha, sigma = a.sqrt(), (1 - a).sqrt()
    return sigma / (alpha + sigma)


def step_of(t: Tensor, times: Tensor) -> Tensor:
    """The continuous step τ of t: linear between the table's entries, held at both ends; differentiable in t."""
    exact, times = t.double(), times.to(t.device)  # beside t = 1 they are closer than float32 can tell
    i = torch.searchsorted(times, exact.detach().contiguous()).clamp(1, len(times) - 1)
    low, high = times[i - 1], times[i]
    return ((i - 1) + ((exact - low) / (high - low)).clamp(0, 1)).to(t.dtype)


@frozen(eq=False)
class Schedule:
    """times: t of every discrete step, increasing; prediction: what the network says there, one of `PREDICTIONS`."""

    times: Tensor
    prediction: str = field(default="v_prediction", validator=validators.in_(PREDICTIONS))
    ends: tuple[float, float] = field(init=False)

    @ends.default
    def _of_times(self) -> tuple[float, float]:
        return float(self.times[0]), float(self.times[-1])

    def __attrs_post_init__(self) -> None:
        low, high = self.ends
        if (self.prediction == "epsilon" and high >= 1) or (self.prediction == "sample" and low <= 0):
            of, where = ("ε", "last step is noise") if self.prediction == "epsilon" else ("x", "first step is data")
            raise ValueError(f"a schedule whose {where} alone has no velocity there of a network that predicts {of}")

    def step_of(self, t: Tensor) -> Tensor:
        return step_of(t, self.times)

    def velocity(self, z: Tensor, made: Tensor, t: Tensor) -> Tensor:
        """u of what the network makes of n z at t, [B] or [B, F]."""
        s = expand(t, z)
        if self.prediction == "v_prediction":
            return velocity(z, made, s)
        x, alpha, sigma = scale(s) * z, *self._held(s)
        v = (made - sigma * x) / alpha if self.prediction == "epsilon" else (alpha * x - made) / sigma
        return velocity(z, v, s)

    def said(self, z: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """The inverse of `velocity`: what a network says whose velocity is u."""
        s = expand(t, z)
        v = prediction(z, u, s)
        if self.prediction == "v_prediction":
            return v
        x, alpha, sigma = scale(s) * z, *self._held(s)
        return sigma * x + alpha * v if self.prediction == "epsilon" else alpha * x - sigma * v

    def _held(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ."""
        t = t.clamp(*self.ends)
        n = scale(t)
        return (1 - t) * n, t * n
