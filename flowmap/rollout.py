"""Generating samples: the same walk for sampling, on-policy training and export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import validators
from ._types import Cache, Cond, Latent, Rng, Time, to_device
from .chunked import HistoryGrad, chunks_after, graph_of_history, matching, packed, serves
from .experts import phased_step
from .model import FlowMap, Kind
from .path import renoise
from .times import ALL, Span, euler_grid, parting, span

CHUNK = 0xC4A2
"""Before the number of a chunk in the key of its stream: forks by a small number are anybody's."""
Step: TypeAlias = Callable[[FlowMap, Latent, Time, Time, Cond, Cache, Rng], Latent]


def ode_step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """Follow the flow: Φ_{r←t}(z)."""
    return u.jump(z, t, r, cond, cache)


def euler_step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """Follow the velocity at t: z - (t - r) u(z, t, t), one Euler step of a network that knows one time."""
    return z - (t - r).reshape(-1, *(1,) * (z.ndim - 1)) * u(z, t, t, cond, cache)


def consistency_step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
    """Jump to data, then noise again to r. Consistency models, arXiv:2303.01469, algorithm 1."""
    return restart_step(1.0)(u, z, t, r, cond, cache, rng)


def restart_step(gamma: float) -> Step:
    """Jump to (1 - γ) r, then noise again to r: γ = 0 follows the flow, γ = 1 is the consistency sampler.

    γ-sampling, arXiv:2310.02279, section 4.
    """

    def step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
        below = (1 - gamma) * r
        z = u.jump(z, t, below, cond, cache)
        return z if gamma == 0 else renoise(z, rng.noise_like(z), below, r)

    return step


STEPS: Mapping[Kind, Step] = {
    "euler": euler_step, "flow_map": ode_step, "consistency": consistency_step, "phased": phased_step,
}  # fmt: skip
"""By `Sampling.kind`."""


def guided_euler_step(w: float, null: Cond) -> Step:
    """An Euler step of the teacher's ODE under classifier-free guidance: two calls, batched as one.

    For a network that makes all frames at once: each branch needs a history of its own, which `Guided` keeps.
    """

    def step(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Latent:
        if cache is not None:
            raise ValueError(
                "guided_euler_step was given a history, which is of one branch of guidance and not of both: walk "
                "Guided(u, w, null) of flowmap.guidance with euler_step instead"
            )
        return z - (t - r).reshape(-1, *(1,) * (z.ndim - 1)) * u.velocity(z, t, cond, null, w)

    return step


def generate(
    u: FlowMap,
    noise: Iterable[Latent],
    cond: Cond,
    grid: Tensor,
    rng: Rng | None,
    *,
    given: Sequence[Latent] = (),
    step: Step = ode_step,
    grad_last: int | None = None,
    replay: bool = False,
    history_grad: bool = False,
) -> Iterator[Latent]:
    """Take the `noise` of chunk after chunk down `grid` = (1, ..., 0); yield each chunk as soon as it is finished.

    given: finished chunks that come before. grad_last: how many steps of each chunk, the last ones, carry gradients;
    None is all. Between chunks gradients stop: the history is a snapshot of finished, detached chunks, and is extended
    when the next chunk is asked for. history_grad: with a graph, so that a chunk teaches how what it read is written,
    too; the frames stay detached. Self Gradient Forcing, arXiv:2607.20368. replay: keep no graph; each chunk is walked
    again in the backward pass, one after the other, so that the graph of one is held at a time: the same gradient for a
    second forward pass, in which a history with a graph is written anew for each.

    Chunk k of the video draws from `rng.fork(CHUNK, k)`, which no one else forks: the same with frames given, and when
    it is walked again. Where rng is None, each of its samples draws by its own noise.
    """

    def remembered(cache: Cache, chunks: Sequence[Latent]) -> Cache:
        for x in chunks:
            cache = u.extend(cache, x, cond)
        return cache

    def run(z: Latent, cache: Cache, chunks: Sequence[Latent], k: int) -> Latent:
        cache = remembered(cache, chunks)
        steps, own = len(grid) - 1, Rng.of(z, CHUNK, k) if rng is None else rng.fork(CHUNK, k)
        for i, (t, r) in enumerate(pairwise(grid)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and (grad_last is None or i >= steps - grad_last)):
                z = step(u, z, t.expand(len(z)), r.expand(len(z)), cond, cache, own)
        return z

    cache: Cache = None
    finished: Sequence[Latent] = [x.detach() for x in given]
    for k, z in enumerate(noise, len(given)):
        again = replay and torch.is_grad_enabled()
        if not (again and history_grad):
            with torch.set_grad_enabled(torch.is_grad_enabled() and history_grad):
                cache, finished = remembered(cache, finished), ()
        if again:
            # early_stop would leave u in the middle of its last call, by an exception
            z = checkpoint(run, z, cache, finished, k, use_reentrant=False, early_stop=False)
        else:
            z = run(z, cache, (), k)
        yield z
        finished = (*finished, z.detach())


def walk(
    u: FlowMap,
    noise: Latent,
    cond: Cond,
    grid: Tensor,
    rng: Rng | None,
    *,
    context: Latent | None = None,
    step: Step = ode_step,
    grad_last: int | None = None,
    replay: bool = False,
    history_grad: HistoryGrad = False,
) -> Latent:
    """`generate` on the whole `noise` [B, F, C, H, W]: all F frames.

    context: clean latents of the first frames [B, F0, C, H, W], one for image-to-video, more to go on from a clip. They
    come back as they are, and the noise of these frames is not used. history_grad: as in `generate`; "packed" is a walk
    without a graph and then one call a step for all chunks, the same numbers and the same gradient.
    """
    serves(u, grid)
    past, rest = chunks_after(u, noise.shape[1], 0 if context is None else matching(context, noise).shape[1])
    given = () if context is None else context.to(noise).split(past, dim=1)
    chunks = noise.split((*past, *rest), dim=1)[len(past) :]
    if history_grad == "packed" and context is None and torch.is_grad_enabled() and len(chunks) > 1:
        first = 0 if grad_last is None else max(0, len(grid) - 1 - grad_last)

        def made(step: Step) -> Latent:
            return torch.cat([*generate(u, chunks, cond, grid, rng, step=step)], dim=1)

        return packed(u, cond, grid, first, step, made)
    settings: dict[str, Any] = {"step": step, "grad_last": grad_last, "replay": replay}
    found = generate(u, chunks, cond, grid, rng, given=given, history_grad=bool(history_grad), **settings)
    return torch.cat([*given, *found], dim=1)


@torch.no_grad()
def sample(
    u: FlowMap,
    noise: Latent,
    cond: Cond,
    steps: int = 4,
    *,
    shift: float = 1.0,
    step: Step = ode_step,
    rng: Rng | None = None,
    context: Latent | None = None,
    grid: Tensor | None = None,
) -> Latent:
    """Any-step sampling: z_1 -> x in `steps` jumps on the shifted grid; the state is float32 throughout. Of two
    experts it takes at least two, and one of them ends at the boundary.

    grid: (1, ..., 0) in place of that one, for a student of fixed noise levels, `flowmap.times.grid_of`.
    rng: of a step that draws, such as `consistency_step`. By default each sample draws by its own noise: the same noise
    gives the same sample in any batch, and other noise another. context: the clean latents of the first frames, where
    the video is to go on from them; see `walk`.
    """
    grid = (euler_grid(steps, shift, u.boundary) if grid is None else grid).to(noise.device)
    noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
    return walk(u, noise, cond, grid, rng, context=context, step=step)


class Rollout(Protocol):
    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent: ...


def _grid(steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(steps)


def _budgets(instance: object, attribute: object, steps: tuple[int, ...]) -> None:
    if not steps or min(steps) < 1:
        name = type(instance).__name__
        raise ValueError(f"{name}.steps = {steps}: must name at least one budget, each at least 1")


@frozen
class FlowMapBackwardSimulation:
    """An n-step walk collapsed into 1 -> t_i -> t_{i+1} -> 0: at most three jumps, all differentiable.

    n from `steps` and i < n are drawn anew each time, the same on every rank; the jumps before and after the i-th
    step stand in for the steps that a full walk would take, so the cost does not grow with n. E[calls] = 3 - 2 / n
    for n >= 2. replay: hold the graph of one chunk at a time, for twice the forward passes; history_grad: let the
    gradient reach how history is written; see `generate` and `walk`. AnyFlow, arXiv:2605.13724.

    within: of two experts that part at b, the times of the one that learns; n are the steps of both. The high one's
    walk goes 1 -> t_i -> t_{i+1} -> b, and its samples are noisy, z_b. The low one's begins with what the high one
    makes of noise by such jumps of its own, which carry no gradient: u is then the pair of them.
    """

    steps: tuple[int, ...] = field(default=(2, 4, 8, 16, 50), converter=_grid, validator=_budgets)
    shift: float = field(default=5.0, validator=validators.gt(0.0))
    replay: bool = False
    within: Span = field(default=ALL, validator=span)
    history_grad: HistoryGrad = field(default=False, validator=graph_of_history)

    def __attrs_post_init__(self) -> None:
        if self.within != ALL and min(self.steps) < 2:
            raise ValueError(
                f"FlowMapBackwardSimulation.steps = {self.steps}: must each be at least 2, one for each of two experts"
            )

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        low, high = self.within
        grid = euler_grid(self.steps[rng.randint(len(self.steps))], self.shift, parting(self.within))
        corners, last = self._corners(grid[(grid >= low) & (grid <= high)], rng), None
        if self.within != ALL:
            self._check(u, noise.shape[1])
        if high < 1.0:
            last = len(corners) - 1
            corners = torch.cat([self._corners(grid[grid >= high], rng)[:-1], corners])
        how: dict[str, Any] = {"replay": self.replay, "history_grad": self.history_grad}
        return walk(u, noise, cond, to_device(corners, noise.device), rng, grad_last=last, **how)

    @staticmethod
    def _corners(grid: Tensor, rng: Rng) -> Tensor:
        """Its first time, a random step of it, its last time."""
        i = rng.randint(len(grid) - 1)
        return torch.stack([grid[0], grid[i], grid[i + 1], grid[-1]]).unique().flip(0)

    def _check(self, u: FlowMap, frames: int) -> None:
        low, high = self.within
        if low and len(chunks := u.chunks(frames)) > 1:
            raise ValueError(
                f"FlowMapBackwardSimulation.within = {self.within}: the network makes chunks of {chunks} frames, whose "
                f"history would be of samples at t = {low:g}: must make all frames at once"
            )
        if high < 1.0 and u.boundary != high:
            has = "is one network" if u.boundary is None else f"has its boundary at {u.boundary:g}"
            raise ValueError(
                f"FlowMapBackwardSimulation.within = {self.within}: the student {has}: must be the pair of a high "
                f"expert, which makes the samples at t = {high:g}, and of the one that learns"
            )


@frozen
class ConsistencySimulation:
    """Stop at a random step of a fixed schedule and jump to data; only that jump is differentiable.

    `times` are the noise levels before the final 0, decreasing from 1. replay, history_grad: as in
    `FlowMapBackwardSimulation`. DMD2, arXiv:2405.14867; Self-Forcing, arXiv:2506.08009, algorithm 1; Self Gradient
    Forcing, arXiv:2607.20368.
    """

    times: tuple[float, ...] = field(default=(1.0, 0.9375, 0.8333, 0.625), converter=tuple)
    replay: bool = False
    history_grad: HistoryGrad = field(default=False, validator=graph_of_history)

    @times.validator
    def _decreasing(self, attribute: object, times: tuple[float, ...]) -> None:
        if not times or times[0] != 1.0 or any(a <= b for a, b in pairwise((*times, 0.0))):
            raise ValueError(f"ConsistencySimulation.times = {times}: must decrease strictly from 1.0 and stay above 0")

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        grid = torch.tensor([*self.times[: rng.randint(len(self.times)) + 1], 0.0])
        how: dict[str, Any] = {"replay": self.replay, "history_grad": self.history_grad}
        return walk(u, noise, cond, to_device(grid, noise.device), rng, step=consistency_step, grad_last=1, **how)
