"""Generating samples: the same walk for sampling, on-policy training and export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import validators
from ._types import Cache, Cond, Latent, Rng, to_device
from .chunked import (
    NO_GRAPH,
    HistoryGrad,
    budgets,
    chunks_after,
    graph_of_history,
    last_calls,
    matching,
    nested,
    noise_of_history,
    on_to_last,
    one_for_all,
    packed,
    recorded,
    recorder,
    remembering,
    require_expert,
    require_number,
    require_one_time,
    require_recorded,
    seen_later,
    serves,
    time,
)
from .model import FlowMap, HistoryNoise, Recorded, Sampling
from .steps import STEPS as STEPS
from .steps import Step as Step
from .steps import consistency_step as consistency_step
from .steps import euler_step as euler_step
from .steps import ode_step as ode_step
from .steps import one_of
from .steps import restart_step as restart_step
from .times import ALL, Grid, Span, Steps, corners_of, euler_grid, grids_of, of_chunk, parting, span

CHUNK = 0xC4A2
"""Before the number of a chunk in the key of its stream: forks by a small number are anybody's."""


def generate(
    u: FlowMap,
    noise: Iterable[Latent],
    cond: Cond,
    grid: Grid,
    rng: Rng | None,
    *,
    given: Sequence[Latent] = (),
    step: Step = ode_step,
    grad_last: int | None = None,
    one_jump: bool = False,
    replay: bool = False,
    history_grad: bool = False,
    history_noise: HistoryNoise | None = None,
) -> Iterator[Latent]:
    """Take the `noise` of chunk after chunk down `grid` = (1, ..., 0); yield each chunk as soon as it is finished.

    grid: of all chunks, or one for each of the video, those given among them, of which the last repeats.
    given: finished chunks that come before. grad_last: how many steps of each chunk, the last ones, carry gradients;
    None is all. one_jump: of these one, drawn for each chunk, in which u has a graph and counts as often as there are
    such steps; in the others u is a constant. Between chunks gradients stop: the history is a snapshot of finished,
    detached chunks, and is extended when the next chunk is asked for. history_grad: with a graph, so that a chunk
    teaches how what it read is written, too; the frames stay detached. Self Gradient Forcing, arXiv:2607.20368. replay:
    keep no graph; each chunk is walked again in the backward pass, one after the other, so that one graph is held at a
    time: the same gradient for a second forward pass, in which a history with a graph is written anew for each.

    history_noise: the time τ that finished chunks are noised to again before they are remembered, (1 - τ) x + τ n,
    which `FlowMap.extend_noisy` is told; None is the network's own. Those that are yielded stay as they are. "last": a
    chunk is remembered by what its last call kept, `flowmap.model.Recorded`, and no call is made to encode it; those
    given, which no call made, and those of one step, whose call was given pure noise, are remembered clean.

    Chunk k of the video draws from `rng.fork(CHUNK, k)`, which no one else forks: the same with frames given, and when
    it is walked again. Where rng is None, each of its samples draws by its own noise.
    """

    noisy = u.history_noise if history_noise is None else history_noise
    own_calls, τ = noisy == "last", 0.0 if isinstance(noisy, str) else noisy
    if own_calls and history_grad:
        raise ValueError(f"history_noise = 'last' with history_grad: {NO_GRAPH}: must be a number")

    def stream(z: Latent, k: int) -> Rng:
        return Rng.of(z, CHUNK, k) if rng is None else rng.fork(CHUNK, k)

    def remembered(cache: Cache, chunks: Sequence[Latent]) -> Cache:
        for x in chunks:
            cache = u.extend_noisy(cache, x, time(x, τ), cond) if τ else u.extend(cache, x, cond)
        return cache

    def run(z: Latent, cache: Cache, chunks: Sequence[Latent], k: int) -> tuple[Latent, Recorded | None]:
        cache = remembered(cache, chunks)
        times, own = of_chunk(grid, k), stream(z, k)
        steps = len(times) - 1
        last = steps if grad_last is None else min(grad_last, steps)
        asked = one_of(u, last, own) if one_jump and torch.is_grad_enabled() else [u] * last
        calls = last_calls(u, times) if own_calls else {0}
        kept = None if 0 in calls else recorder(u, cache)
        for i, (v, (t, r)) in enumerate(zip([u] * (steps - last) + asked, pairwise(times), strict=True)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= steps - last):
                seen = cache if kept is None or i not in calls else kept
                z = step(v, z, t.expand(len(z)), r.expand(len(z)), cond, seen, own)
        return z, kept

    cache: Cache = None
    kept: Recorded | None = None
    finished: Sequence[Latent] = [seen_later(x, τ, stream(x, k)) for k, x in enumerate(given)]
    for k, z in enumerate(noise, len(given)):
        again = replay and torch.is_grad_enabled()
        if not (again and history_grad):
            with torch.set_grad_enabled(torch.is_grad_enabled() and history_grad):
                cache = remembered(cache if kept is None else recorded(kept.after, u, k - 1), finished)
                finished = ()
        if again:
            # early_stop would leave u in the middle of its last call, by an exception
            x, kept = checkpoint(run, z, cache, finished, k, use_reentrant=False, early_stop=False)
        else:
            x, kept = run(z, cache, (), k)
        yield x
        finished = () if kept is not None else (*finished, seen_later(x, τ, stream(z, k)))


def walk(
    u: FlowMap,
    noise: Latent,
    cond: Cond,
    grid: Grid,
    rng: Rng | None,
    *,
    context: Latent | None = None,
    step: Step = ode_step,
    grad_last: int | None = None,
    one_jump: bool = False,
    replay: bool = False,
    history_grad: HistoryGrad = False,
    history_noise: HistoryNoise | None = None,
) -> Latent:
    """`generate` on the whole `noise` [B, F, C, H, W]: all F frames.

    context: clean latents of the first frames [B, F0, C, H, W], one for image-to-video, more to go on from a clip. They
    come back as they are, and the noise of these frames is not used. history_grad: as in `generate`; "packed" is a walk
    without a graph and then one call a step for all chunks, the same numbers and the same gradient. one_jump,
    history_noise: as in `generate`; "packed" has none. A ValueError for grids of more chunks than the video has.
    """
    past, rest = chunks_after(u, noise.shape[1], 0 if context is None else matching(context, noise).shape[1])
    serves(u, grid, len(past) + len(rest))
    require_recorded(u, history_noise, grid, (*past, *rest), len(past))
    given = () if context is None else context.to(noise).split(past, dim=1)
    chunks = noise.split((*past, *rest), dim=1)[len(past) :]
    if history_grad == "packed" and context is None and torch.is_grad_enabled() and len(chunks) > 1:
        grid = one_for_all(grid, history_noise)
        first = 0 if grad_last is None else max(0, len(grid) - 1 - grad_last)

        def made(step: Step) -> Latent:
            return torch.cat([*generate(u, chunks, cond, grid, rng, step=step, history_noise=0.0)], dim=1)

        return packed(u, cond, grid, first, step, made)
    settings: dict[str, Any] = {"step": step, "grad_last": grad_last, "one_jump": one_jump, "replay": replay}
    settings |= {"history_grad": bool(history_grad), "history_noise": history_noise}
    found = generate(u, chunks, cond, grid, rng, given=given, **settings)
    return torch.cat([*given, *found], dim=1)


@torch.no_grad()
def sample(
    u: FlowMap,
    noise: Latent,
    cond: Cond,
    steps: Steps = 4,
    *,
    shift: float = 1.0,
    step: Step = ode_step,
    rng: Rng | None = None,
    context: Latent | None = None,
    grid: Grid | None = None,
    history_noise: HistoryNoise | None = None,
) -> Latent:
    """Any-step sampling: z_1 -> x in `steps` jumps on the shifted grid; the state is float32 throughout. Of two
    experts it takes at least two, and one of them ends at the boundary. Several numbers, [4, 2], are of the chunks one
    by one, and the last repeats: the first chunk sets the scene.

    grid: (1, ..., 0) in place of that one, for a student of fixed noise levels, `flowmap.times.grids_of`.
    rng: of a step that draws, such as `consistency_step`. By default each sample draws by its own noise: the same noise
    gives the same sample in any batch, and other noise another. context: the clean latents of the first frames, where
    the video is to go on from them; see `walk`. history_noise: as in `generate`, the network's own by default.
    """
    found = grids_of(Sampling(), steps, shift, u.boundary) if grid is None else grid
    grid = found.to(noise.device) if isinstance(found, Tensor) else [own.to(noise.device) for own in found]
    noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
    return walk(u, noise, cond, grid, rng, context=context, step=step, history_noise=history_noise)


class Rollout(Protocol):
    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent: ...


@frozen
class FlowMapBackwardSimulation:
    """An n-step walk collapsed into 1 -> t_i -> t_{i+1} -> 0: at most three jumps, all differentiable.

    n from `steps` and i < n are drawn anew each time, the same on every rank; the jumps before and after the i-th
    step stand in for the steps that a full walk would take, so the cost does not grow with n. E[calls] = 3 - 2 / n
    for n >= 2. A budget may name the steps of each chunk, (4, 2), of which the last repeats: i is then drawn as a part
    of the way, each of a chunk's own steps as often. replay: hold the graph of one chunk at a time, for twice the
    forward passes; history_grad: let the gradient reach how history is written; history_noise: of finished chunks as
    later ones see them; see `generate` and `walk`. Where that is "last", the walk ends by t_{n-1} -> 0, as the n steps
    do, so that chunks are remembered at the time of samples: 4 - 4 / n calls, and none to encode a chunk. AnyFlow,
    arXiv:2605.13724.

    one_jump: of K jumps one, drawn for each chunk, has a graph, and its gradient counts K times: 1 G + (K - 1) F in
    place of K G. The mean over draws is the gradient of all jumps with du/dz taken for 0: how a jump's u changes
    with those before it is left out.

    within: of two experts that part at b, the times of the one that learns; n are the steps of both. The high one's
    walk goes 1 -> t_i -> t_{i+1} -> b, and its samples are noisy, z_b. The low one's begins with what the high one
    makes of noise by such jumps of its own, which carry no gradient: u is then the pair of them.
    """

    steps: tuple[int | tuple[int, ...], ...] = field(default=(2, 4, 8, 16, 50), converter=nested, validator=budgets)
    shift: float = field(default=5.0, validator=validators.gt(0.0))
    replay: bool = False
    within: Span = field(default=ALL, validator=span)
    history_grad: HistoryGrad = field(default=False, validator=graph_of_history)
    history_noise: HistoryNoise = field(default=0.0, validator=noise_of_history)
    one_jump: bool = False

    def __attrs_post_init__(self) -> None:
        if self.within != ALL and not all(isinstance(n, int) and n > 1 for n in self.steps):
            raise ValueError(
                f"FlowMapBackwardSimulation.steps = {self.steps}: must each be at least 2, one for each of two experts"
            )
        require_one_time(self.history_grad, self.steps, "FlowMapBackwardSimulation.steps")

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        low, high = self.within
        n, last = self.steps[rng.randint(len(self.steps))], None
        grids = [euler_grid(k, self.shift, parting(self.within)) for k in ((n,) if isinstance(n, int) else n)]
        corners = corners_of([grid[(grid >= low) & (grid <= high)] for grid in grids], rng)
        if self.history_noise == "last":
            corners = on_to_last(u, corners, grids)
        if self.within != ALL:
            require_expert(u, noise.shape[1], self.within)
        if high < 1.0:
            last = len(corners[0]) - 1
            corners = [torch.cat([corners_of([grids[0][grids[0] >= high]], rng)[0][:-1], corners[0]])]
        how = {**remembering(self), "one_jump": self.one_jump}
        corners = [to_device(grid, noise.device) for grid in corners]
        return walk(u, noise, cond, corners[0] if isinstance(n, int) else corners, rng, grad_last=last, **how)


@frozen
class ConsistencySimulation:
    """Stop at a random step of a fixed schedule and jump to data; only that jump is differentiable.

    `times` are the noise levels before the final 0, decreasing from 1; or those of each chunk, of which the last
    repeat. Each chunk then stops at the same step, or at its last where it has fewer: (1, 1), (2, 2), (3, 2), (4, 2)
    of four and two. replay, history_grad, history_noise, which is a number: as in `FlowMapBackwardSimulation`.
    DMD2, arXiv:2405.14867; Self-Forcing, arXiv:2506.08009, algorithm 1; Self Gradient Forcing, arXiv:2607.20368.
    """

    times: tuple[float, ...] | tuple[tuple[float, ...], ...] = field(
        default=(1.0, 0.9375, 0.8333, 0.625), converter=nested
    )
    replay: bool = False
    history_grad: HistoryGrad = field(default=False, validator=graph_of_history)
    history_noise: HistoryNoise = field(default=0.0, validator=noise_of_history)

    @times.validator
    def _decreasing(self, attribute: object, times: Any) -> None:
        for own in self._each or ((),):
            if not own or own[0] != 1.0 or any(a <= b for a, b in pairwise((*own, 0.0))):
                must = "must decrease strictly from 1.0 and stay above 0"
                raise ValueError(f"ConsistencySimulation.times = {times}: {must}")

    def __attrs_post_init__(self) -> None:
        require_one_time(self.history_grad, self.times, "ConsistencySimulation.times")
        require_number(self.history_noise, self._each)

    @property
    def _each(self) -> tuple[tuple[float, ...], ...]:
        """The levels by chunk."""
        levels: Any = self.times
        return levels if levels and isinstance(levels[0], tuple) else (levels,)

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        last = rng.randint(max(map(len, self._each))) + 1
        grids = [to_device(torch.tensor([*own[:last], 0.0]), noise.device) for own in self._each]
        grid: Grid = grids if len(grids) > 1 else grids[0]
        return walk(u, noise, cond, grid, rng, step=consistency_step, grad_last=1, **remembering(self))
