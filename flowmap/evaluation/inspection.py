"""What a network is: whether it reads r, whose velocity its diagonal is, which guidance it has built in, how nearly its
jumps are a flow map. Each is a number, exact on networks that are known; |x| is the root of the mean square."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from attrs import frozen
from torch import Tensor

from .._types import Cond, Latent, Rng, Time, nullify
from ..model import FlowMap
from ..path import expand, interpolate
from ..rollout import euler_step, ode_step, sample
from ..times import euler_grid

STEPS = (2, 4, 8, 32)
SMALL, LARGE = 0.1, 0.5
"""Shares below which a deviation is small, and from which it is large: a reader's, not a theorem's."""


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@torch.no_grad()
def reads_r(u: FlowMap, z: Latent, t: Time, cond: Cond) -> float:
    """|u(z, t, 0) - u(z, t, t)| / |u(z, t, t)|: 0 of a network that has one time."""
    v = u(z, t, t, cond)
    return rms(u(z, t, torch.zeros_like(t), cond) - v) / rms(v)


@torch.no_grad()
def semigroup_defect(
    u: FlowMap, noise: Latent, cond: Cond, steps: int, shift: float = 1.0, ends: Callable[[int], Latent] | None = None
) -> float:
    """|x_1 - x_n| / |ε - x_n|: how far one jump from noise to data ends from n jumps of the grid, of the whole way.

    0 for every n of a flow map, since Φ_{0←1} = Φ_{0←s} Φ_{s←1}. Of a velocity it is what one Euler step misses.
    ends: x_n by n, for who asks for several.
    """
    ends = ends or partial(sample, u, noise, cond, shift=shift)
    one, many = ends(1), ends(steps)
    return rms(one - many) / rms(noise - many)


@torch.no_grad()
def diagonal_error(
    u: FlowMap, teacher: FlowMap, z: Latent, t: Time, cond: Cond, null: Cond | None = None, w: float = 1.0
) -> float:
    """|u(z, t, t) - v_w(z, t)| / |v_w(z, t)|, v_w the teacher's velocity under guidance w."""
    v = teacher.velocity(z, t, cond, null, w)
    return rms(u(z, t, t, cond) - v) / rms(v)


@torch.no_grad()
def built_in_guidance(u: FlowMap, teacher: FlowMap, z: Latent, t: Time, cond: Cond, null: Cond) -> float:
    """The w whose v_w = v_∅ + w (v_c - v_∅) comes nearest to the diagonal, by least squares:

        w = <u(z, t, t) - v_∅, v_c - v_∅> / |v_c - v_∅|².

    How near, `diagonal_error` at that w says. Not a number where the prompt changes nothing.
    """
    v, v_null = (teacher(z, t, t, c).double() for c in (cond, nullify(cond, null)))
    change = v - v_null
    return float(((u(z, t, t, cond).double() - v_null) * change).sum() / change.square().sum())


@torch.no_grad()
def calibration(u: FlowMap, x: Latent, noise: Latent, t: Time, cond: Cond) -> tuple[float, float]:
    """(<u, ε - x> / |u|², and its standard error over samples) on the diagonal at z_t = (1 - t) x + t ε.

    1 where u is the velocity E[ε - x | z_t] of these data, as then <u, ε - x> = |u|²; above 1 it is too small. It is a
    test of the size alone, that needs no teacher: guidance built in, or other data, give something else as a rule.
    """
    z, v = interpolate(x, noise, t)
    found = u(z, t, t, cond).double().flatten(1)
    both, own = (found * v.flatten(1)).sum(1), found.square().sum(1)
    ratio = both.sum() / own.sum()
    error = ((both - ratio * own).square().sum()).sqrt() / own.sum()
    return float(ratio), float(error)


@frozen
class Inspection:
    """What was measured of one network. None: there was no teacher, no null condition, or no data to measure it by.

    defects: `semigroup_defect` by the number of steps. guidance: `built_in_guidance`; diagonal: `diagonal_error` at
    it. fit: (ratio, standard error) of `calibration`.
    """

    samples: int
    reads_r: float
    defects: dict[int, float]
    guidance: float | None = None
    diagonal: float | None = None
    fit: tuple[float, float] | None = None

    def lines(self) -> Iterator[str]:
        yield f"reads r: u(z, t, 0) differs from u(z, t, t) by {self.reads_r:.2g} of its size"
        for steps, defect in self.defects.items():
            yield f"semigroup defect: one jump ends {defect:.3f} of the way from where {steps} jumps end"
        if self.guidance is not None:
            yield f"guidance built in, by least squares: {self.guidance:.2f}"
        if self.diagonal is not None:
            at = "" if self.guidance is None else f" under guidance {self.guidance:.2f}"
            yield f"diagonal error: u(z, t, t) differs from the teacher's velocity{at} by {self.diagonal:.2g} of it"
        if self.fit is not None:
            ratio, error = self.fit
            yield f"fit to the data on the diagonal: {ratio:.3f} ± {error:.3f}, 1 for their velocity"
        yield f"verdict: {self.verdict()}"

    def verdict(self) -> str:
        """In one line: what it is, and how to go on from it."""
        if self.reads_r < 1e-6:
            return "a velocity: it has one time; give it a second by training, stage 1 and then stage 2"
        worst = max(self.defects.values())
        near = "an exact" if worst < SMALL else "a rough" if worst < LARGE else "no"
        told = f"it reads r and is {near} flow map (worst defect {worst:.2f})"
        if self.diagonal is None:
            return f"{told}; whether its diagonal is a velocity was not measured: give a teacher"
        if self.diagonal < SMALL:
            return f"{told}, whose diagonal is the teacher's velocity: train on from it, stage 2 as it is"
        return (
            f"{told}, whose diagonal is not the teacher's velocity: begin with stage 1, three quarters on the diagonal "
            "at first, and take the teacher, not it, for stage 2"
        )


@torch.no_grad()
def inspect(
    u: FlowMap,
    noise: Latent,
    cond: Cond,
    *,
    teacher: FlowMap | None = None,
    null: Cond | None = None,
    x: Latent | None = None,
    shift: float = 1.0,
    steps: tuple[int, ...] = STEPS,
    seed: int = 0,
) -> Inspection:
    """Measure `u` at states of the data x [B, F, C, H, W], or of what it makes itself in the most steps.

    t: uniform in [0.02, 0.98] before the shift. A network in chunks is measured on its first alone, without a history.
    """
    rng = Rng.seeded(seed)
    first = u.chunks(noise.shape[1])[0]
    noise, given = noise[:, :first], x
    walked = ode_step if reads_r(u, noise, torch.ones(len(noise), device=noise.device), cond) > 0 else euler_step
    ends = cache(partial(sample, u, noise, cond, shift=shift))
    if x is not None:
        x = x[:, :first]
    else:
        x = ends(max(steps)) if walked is ode_step else sample(u, noise, cond, max(steps), shift=shift, step=walked)
    t = 0.02 + 0.96 * rng.uniform(len(x), x)
    t = shift * t / (1 + (shift - 1) * t)
    fresh = rng.noise_like(x)
    z = (1 - expand(t, x)) * x + expand(t, x) * fresh
    w = None if teacher is None or not null else built_in_guidance(u, teacher, z, t, cond, null)
    w = w if w is not None and w == w else None
    counts = [n for n in steps if len(euler_grid(n)) > 2]
    return Inspection(
        len(x),
        reads_r(u, z, t, cond),
        {n: semigroup_defect(u, noise, cond, n, shift, ends) for n in counts},
        w,
        None if teacher is None else _error(u, teacher, z, t, cond, null, w),
        None if given is None else calibration(u, x, fresh, t, cond),
    )


def _error(u: FlowMap, teacher: FlowMap, z: Latent, t: Time, cond: Cond, null: Cond | None, w: float | None) -> float:
    return diagonal_error(u, teacher, z, t, cond) if w is None else diagonal_error(u, teacher, z, t, cond, null, w)
