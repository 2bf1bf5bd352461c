"""Around a walk in chunks: which are given, whether the network serves it, and all of them in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from . import validators
from ._types import Cache, Cond, Latent, Rng, Time
from .model import FlowMap, HistoryNoise, Recorded
from .path import interpolate
from .times import ALL, Grid, Span, of_chunk

HISTORY = 0x415
NO_GRAPH = "what a call keeps of its own input has no graph"
BETWEEN = 1e-6
"""Times in float32 that are the same."""
HistoryGrad: TypeAlias = bool | Literal["packed"]
"""Whether a chunk's gradient reaches the parameters by which finished chunks before it were remembered.

True: `extend` builds a graph. "packed": the walk is made without one, and then once more with all chunks in one call,
of a network that has such a call, `FlowMap.packed`."""


def graph_of_history(instance: Any, attribute: Any, value: HistoryGrad) -> None:
    """The validator of `history_grad` beside a field `replay`."""
    validators.in_((False, True, "packed"))(instance, attribute, value)
    if value == "packed" and instance.replay:
        raise validators.wrong(instance, attribute, value, "must be True with replay = True, which goes chunk by chunk")
    if value == "packed" and getattr(instance, "one_jump", False):
        raise validators.wrong(instance, attribute, value, "must be True with one_jump = True, a jump for each chunk")


def chunks_after(u: FlowMap, frames: int, given: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of the chunks that the first `given` of `frames` fill, and of those that are left to make.

    A ValueError where they end inside a chunk, or leave none.
    """
    sizes = u.chunks(frames)
    ends = [0, *accumulate(sizes)]
    if given in ends[:-1]:
        number = ends.index(given)
        return sizes[:number], sizes[number:]
    if len(sizes) == 1:
        raise ValueError(f"context frames = {given}: this network makes all {frames} at once, and takes none as given")
    allowed = " or ".join(map(str, ends[1:-1]))
    raise ValueError(f"context frames = {given}: must be {allowed}, where a chunk ends and another is left to make")


def nested(values: Sequence[Any]) -> tuple[Any, ...]:
    """A tuple, and tuples in it of what is in rows there: of a number for all chunks, and of one for each."""
    return tuple(tuple(v) if isinstance(v, Sequence) else v for v in values) if isinstance(values, Sequence) else values


def budgets(instance: object, attribute: Any, steps: Any) -> None:
    """The validator of numbers of steps of a walk, each one for all chunks, or one a chunk."""
    each = [n for part in steps for n in (part if isinstance(part, tuple) else (part,))]
    if not steps or () in steps or not all(type(n) is int and n >= 1 for n in each):
        name = f"{type(instance).__name__}.{attribute.name}"
        raise ValueError(f"{name} = {steps}: must name at least one budget, each at least 1, or (4, 2) of chunks")


def noise_of_history(instance: Any, attribute: Any, value: HistoryNoise) -> None:
    """The validator of `history_noise` beside a field `history_grad`."""
    if isinstance(value, str):
        validators.in_(("last",))(instance, attribute, value)
        if instance.history_grad:
            must = f"must be a number with history_grad = {instance.history_grad!r}: {NO_GRAPH}"
            raise validators.wrong(instance, attribute, value, must)
        return
    validators.ge(0.0)(instance, attribute, value)
    if value >= 1.0:
        raise validators.wrong(instance, attribute, value, "must be below 1, which is pure noise")
    if value and instance.history_grad == "packed":
        raise validators.wrong(instance, attribute, value, "must be 0 with history_grad = 'packed', of clean chunks")


def time(x: Latent, t: float) -> Time:
    """[B], one for all samples of x."""
    return torch.full((len(x),), t, device=x.device)


def seen_later(x: Latent, τ: float, rng: Rng) -> Latent:
    """A finished chunk, detached; noised to τ again by a stream of its own, forked from that of the chunk."""
    return interpolate(x.detach(), rng.fork(HISTORY).noise_like(x), time(x, τ))[0] if τ else x.detach()


def recorder(u: FlowMap, cache: Cache) -> Recorded:
    """For a chunk's last call; a ValueError where the network keeps nothing of it."""
    if (found := u.recording(cache)) is None:
        raise ValueError(f"history_noise = 'last': {u.unrecorded(1)}")
    return found


def require_recorded(u: FlowMap, noise: HistoryNoise | None, grid: Grid, sizes: Sequence[int], first: int) -> None:
    """A ValueError where a chunk from number `first` on, which another follows, cannot be remembered by its last call.

    noise: of the history. sizes: frames of all chunks. Those of one step are encoded, whatever the network keeps.
    """
    if (u.history_noise if noise is None else noise) != "last":
        return
    kept = [k for k in range(first, len(sizes) - 1) if 0 not in last_calls(u, of_chunk(grid, k))]
    if kept and (why := u.unrecorded(sum(sizes[: kept[-1] + 2]))) is not None:
        raise ValueError(f"history_noise = 'last': {why}")


def last_calls(u: FlowMap, times: Tensor) -> set[int]:
    """The steps in which a network is called for the last time; of two experts the high one's is another. Where one of
    them is step 0, whose call is given pure noise, the chunk is remembered clean, by both."""
    last = len(times) - 2
    return {last} if u.boundary is None else {max(0, int((times > u.boundary).sum()) - 1), last}


def recorded(after: Cache, u: FlowMap, chunk: int) -> Cache:
    """The snapshot that the last call of `chunk` left; a ValueError where there is none."""
    if after is None:
        raise ValueError(
            f"history_noise = 'last': this {type(u).__name__} cannot remember chunk {chunk}, counted from 0, by the "
            "call that made it: others are encoded anew with it. Must be a number, or all chunks at full resolution"
        )
    return after


def remembering(rollout: Any) -> dict[str, Any]:
    """How a rollout of training remembers chunks: what `walk` is given by these names."""
    return {name: getattr(rollout, name) for name in ("replay", "history_grad", "history_noise")}


def require_one_time(history_grad: HistoryGrad, values: Sequence[Any], name: str) -> None:
    """A ValueError where chunks in one call would be at times of their own."""
    if history_grad == "packed" and any(isinstance(v, tuple) for v in values):
        raise ValueError(
            f"{name} = {values} with history_grad = 'packed': one call for all chunks is at one time: must be the same "
            "for all chunks, or history_grad = True"
        )


def require_expert(u: FlowMap, frames: int, within: Span) -> None:
    """A ValueError where u is not what `within` a walk of one of two experts needs."""
    low, high = within
    if low and len(chunks := u.chunks(frames)) > 1:
        raise ValueError(
            f"FlowMapBackwardSimulation.within = {within}: the network makes chunks of {chunks} frames, whose "
            f"history would be of samples at t = {low:g}: must make all frames at once"
        )
    if high < 1.0 and u.boundary != high:
        has = "is one network" if u.boundary is None else f"has its boundary at {u.boundary:g}"
        raise ValueError(
            f"FlowMapBackwardSimulation.within = {within}: the student {has}: must be the pair of a high "
            f"expert, which makes the samples at t = {high:g}, and of the one that learns"
        )


def require_number(noise: HistoryNoise, times: Sequence[Sequence[float]]) -> None:
    """A ValueError where a rollout that stops at one of `times` is to remember chunks by their last calls."""
    if noise == "last":
        raise ValueError(
            f"ConsistencySimulation.history_noise = 'last': must be a number, such as {times[-1][-1]:g}, at which a "
            "sample's last call is: a rollout stops at a step that is drawn, and to go on to that call would cost more "
            "than to encode the chunk"
        )


def on_to_last(u: FlowMap, corners: Sequence[Tensor], grids: Sequence[Tensor]) -> list[Tensor]:
    """Corners of a collapsed walk, chunk by chunk, with the time of the last call of a sample on its grid. A ValueError
    where u is two experts: the high one's is another, and the grids have no boundary."""
    if u.boundary is not None:
        raise ValueError(
            "FlowMapBackwardSimulation.history_noise = 'last': the student is two experts, and the high one would "
            "remember chunks at other times than in samples: must be a number"
        )
    return [torch.cat([corner, grid[-2:-1]]).unique().flip(0) for corner, grid in zip(corners, grids, strict=True)]


def one_for_all(grid: Grid, history_noise: HistoryNoise | None) -> Tensor:
    """The times of all chunks; a ValueError where each has its own, or where the history is noised."""
    if history_noise:
        raise ValueError(f"history_grad = 'packed' with history_noise = {history_noise!r}: must be 0, of clean chunks")
    if isinstance(grid, Tensor):
        return grid
    raise ValueError(
        "history_grad = 'packed' with a grid for each chunk: one call for all is at one time: must be True"
    )


def serves(u: FlowMap, grid: Grid, chunks: int) -> None:
    """A ValueError where the grid leaves the times of a network that has not all of them, or is of more `chunks` than
    there are."""
    low, high = u.within
    if not isinstance(grid, Tensor):
        if not 1 <= len(grid) <= chunks:
            has = "one chunk, all frames at once" if chunks == 1 else f"{chunks} chunks"
            raise ValueError(f"steps of {len(grid)} chunks, one by one: this video has {has}: must be 1 to {chunks}")
        for own in grid:
            serves(u, own, chunks)
    elif (low, high) != ALL and not (low <= float(grid[-1]) + BETWEEN and float(grid[0]) <= high + BETWEEN):
        raise ValueError(
            f"this is one of two experts alone, for t from {low:g} to {high:g}, and the walk goes from {grid[0]:g} to "
            f"{grid[-1]:g}: take the pair of both"
        )


def matching(context: Latent, noise: Latent) -> Latent:
    if context.ndim != noise.ndim or (len(context), context.shape[2:]) != (len(noise), noise.shape[2:]):
        like = tuple(noise.shape)
        raise ValueError(f"context is {tuple(context.shape)}: must be as noise is, {like}, in all but frames")
    return context


def packed(
    u: FlowMap,
    cond: Cond,
    grid: Tensor,
    first: int,
    step: Callable[..., Latent],
    walked: Callable[[Callable[..., Latent]], Latent],
) -> Latent:
    """The steps of `grid` from the `first` on, with a graph, for all chunks in one call each; the same numbers.

    walked: makes the whole video by a step without one. Every chunk begins where it was then, draws what it drew then,
    and sees of the others what they were in the end: as in the walk itself, no gradient goes from a chunk to another's
    frames.
    """
    entered: list[Latent] = []
    streams: list[Rng] = []
    made = 0

    def watched(u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, own: Rng) -> Latent:
        nonlocal made
        if made % (len(grid) - 1) == first:
            entered.append(z)
            streams.append(copy(own))
        made += 1
        return step(u, z, t, r, cond, cache, own)

    with torch.no_grad():
        x = walked(watched)
    c, z = u.packed(x, cond), torch.cat(entered, dim=1)
    if c is None:
        raise ValueError(
            f"history_grad = 'packed': one call for {len(entered)} chunks is not what this {type(u).__name__} "
            "generates chunk after chunk: must be True"
        )
    own = Apart(tuple(streams), tuple(part.shape[1] for part in entered))
    for t, r in zip(grid[first:-1], grid[first + 1 :], strict=True):
        z = step(u, z, t.expand(len(z)), r.expand(len(z)), c, None, own)
    return z


@frozen
class Apart:
    """The streams of chunks of these sizes, for a draw of all frames: each chunk's are its own."""

    streams: tuple[Rng, ...]
    sizes: tuple[int, ...]

    def noise_like(self, x: Latent) -> Latent:
        parts = zip(self.streams, x.split(self.sizes, dim=1), strict=True)
        return torch.cat([own.noise_like(part) for own, part in parts], dim=1)
