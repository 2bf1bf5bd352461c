"""What a network that generates chunk after chunk must do; one that makes all frames at once skips most."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
from attrs import frozen

from ..._types import Cond, Latent, Rng
from ...model import FlowMap, FlowMapSpec
from ...rollout import sample
from ...window import Window
from ..kit_helpers import Skip, build, close, example, perturb, require, same, times

SEEDS = 32  # of what `teacher_forcing` draws: enough to see every run of chunks, each of which is tested once


def check_chunks_cover_the_frames(spec: FlowMapSpec) -> None:
    """Frames that no chunk makes would be missing from every sample."""
    u, (z, _) = build(spec, "student")["student"], example(spec)
    chunks = u.chunks(z.shape[1])
    require(sum(chunks) == z.shape[1], f"chunks({z.shape[1]}) = {chunks}: must sum to {z.shape[1]}")
    require(min(chunks) >= 1, f"chunks({z.shape[1]}) = {chunks}: each must be at least 1")


def check_the_past_does_not_see_the_future(spec: FlowMapSpec) -> None:
    """A causal network that peeks is better in training than it can be when it generates."""
    u, x, c, chunks = _causal(spec)
    other = x.clone()
    other[:, -chunks[-1] :] += 1.0
    one, two = (sample(u, noise, c, steps=2)[:, : -chunks[-1]] for noise in (x, other))
    close(two, one, "generated frames change with the noise of later chunks")
    t, r = times(x, 0.7, 0.2)
    for run in _runs(u, x, c):
        kept, forced = run.of(u, run.clip, c)
        noise = Rng.seeded(1).noise_like(kept)
        out = u(noise, t, r, forced)
        for stop, size in zip(accumulate(run.kept), run.kept, strict=True):
            clean, noised = run.clip.clone(), noise.clone()
            clean[:, sum(run.before) + stop - size :] += 1.0
            noised[:, stop:] += 1.0
            changed = u(noise, t, r, run.of(u, clean, c)[1])[:, :stop]
            close(changed, out[:, :stop], "in the teacher-forced pass a chunk sees itself, or later ones, clean")
            close(u(noised, t, r, forced)[:, :stop], out[:, :stop], "a chunk sees the noise of later ones")


def check_cached_generation_is_what_was_trained(spec: FlowMapSpec) -> None:
    """The last chunk of a teacher-forced pass must be what the cache of all that came before it gives.

    Chunks before the last may see less in training than when they are generated: long-ago history is compressed, say.
    """
    u, x, c, _ = _causal(spec)
    t, r = times(x, 0.7, 0.2)
    for run in _runs(u, x, c):
        kept, forced = run.of(u, run.clip, c)
        noise, (*history, last) = Rng.seeded(1).noise_like(kept), (*run.before, *run.kept)
        cache = None
        for chunk in run.clip[:, : sum(history)].split(history, dim=1):
            cache = u.extend(cache, chunk, c)
        generated = u(noise[:, -last:], t, r, c, cache)
        after = f"after {len(history)} chunk{'s' * (len(history) != 1)}"
        close(generated, u(noise, t, r, forced)[:, -last:], f"{after}, the cache does not give the teacher-forced pass")


def check_a_cache_is_a_snapshot(spec: FlowMapSpec) -> None:
    """Where a graph is recomputed a cache is read again in the backward pass, and must be as it was."""
    u, x, c, sizes = _causal(spec)
    t, r = times(x, 0.7, 0.2)
    given, cache, seen = x.clone(), None, []
    for chunk in x.split(sizes, dim=1):
        seen.append((chunk, cache, u(chunk, t, r, c, cache)))
        cache = u.extend(cache, chunk, c)
    same(x, given, "`extend` changed the frames it was given")
    for chunk, before, out in seen:
        same(u(chunk, t, r, c, before), out, "`extend` changed the cache it was given: return a new one")


def check_a_packed_pass_is_cached_generation(spec: FlowMapSpec) -> None:
    """A gradient through the history is of what is sampled: each chunk after the cache of those before it."""
    u, x, c, sizes = _causal(spec)
    forced, (t, r) = u.packed(x, c), times(x, 0.7, 0.2)
    if forced is None:
        raise Skip("no call is of all chunks at once")
    noise, cache, found = Rng.seeded(1).noise_like(x), None, []
    for clean, z in zip(x.split(sizes, dim=1), noise.split(sizes, dim=1), strict=True):
        found.append(u(z, t, r, c, cache))
        cache = u.extend(cache, clean, c)
    close(u(noise, t, r, forced), torch.cat(found, dim=1), "a packed pass is not what the cache gives")


def check_a_window_is_the_whole_history_until_it_drops_some(spec: FlowMapSpec) -> None:
    """A stream without end begins as the video does that is remembered whole."""
    u, x, c, sizes = _causal(spec)
    whole = sample(u, x, c, steps=2)
    try:
        u.bound(Window(sink=0, recent=len(sizes) - 1))
    except ValueError as error:
        raise Skip(f"it takes no window: {error}") from None
    same(sample(u, x, c, steps=2), whole, "a window changes frames though all chunks before them are in it")


@frozen
class _Run:
    """Chunks that `teacher_forcing` keeps of `clip`, drawn by `seed`: the sizes of those, and of what comes before."""

    clip: Latent
    seed: int
    before: tuple[int, ...]
    kept: tuple[int, ...]

    def of(self, u: FlowMap, clip: Latent, c: Cond) -> tuple[Latent, Cond]:
        return u.teacher_forcing(clip, c, Rng.seeded(self.seed))


def _runs(u: FlowMap, x: Latent, c: Cond) -> Iterator[_Run]:
    """All that some seeds keep of x and of each of its beginnings, so that every length of history is there; once."""
    seen = set()
    for end in accumulate(u.chunks(x.shape[1])):
        clip, sizes = x[:, :end], u.chunks(end)
        ends = [0, *accumulate(sizes)]
        for seed in range(SEEDS):
            kept, _ = u.teacher_forcing(clip, c, Rng.seeded(seed))
            first, last = span = _span(kept, clip)
            if span in seen:
                continue
            seen.add(span)
            require(
                {*span} <= {*ends}, f"teacher_forcing keeps frames {first} to {last} of {sizes}: must keep whole chunks"
            )
            yield _Run(clip, seed, sizes[: ends.index(first)], sizes[ends.index(first) : ends.index(last)])


def _span(kept: Latent, clip: Latent) -> tuple[int, int]:
    """Where the kept frames stand in the clip."""
    n = kept.shape[1]
    found = [o for o in range(clip.shape[1] - n + 1) if n and torch.equal(clip[:, o : o + n], kept)]
    require(found, f"teacher_forcing returns {n} frames that do not stand together in the {clip.shape[1]} of the clip")
    return found[0], found[0] + n


def _causal(spec: FlowMapSpec) -> tuple[FlowMap, Latent, Cond, tuple[int, ...]]:
    """A perturbed student, an example, and its chunks; Skip where all frames come at once."""
    u, (x, c) = build(spec, "student")["student"], example(spec)
    chunks = u.chunks(x.shape[1])
    if len(chunks) == 1:
        raise Skip("all frames are generated in one chunk")
    perturb(u, 0)
    return u.requires_grad_(False), x, c, chunks
