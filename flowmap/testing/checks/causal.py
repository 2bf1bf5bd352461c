"""What a network that generates chunk after chunk must do; one that makes all frames at once skips most."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._types import Rng
from ...model import FlowMap, FlowMapSpec
from ...rollout import sample
from ..kit import Skip, build, close, perturb, require, same, times


def check_chunks_cover_the_frames(spec: FlowMapSpec) -> None:
    """Frames that no chunk makes would be missing from every sample."""
    u, (z, _) = build(spec, "student")["student"], spec.example()
    chunks = u.chunks(z.shape[1])
    require(sum(chunks) == z.shape[1], f"chunks({z.shape[1]}) = {chunks}: must sum to {z.shape[1]}")
    require(min(chunks) >= 1, f"chunks({z.shape[1]}) = {chunks}: each must be at least 1")


def check_the_past_does_not_see_the_future(spec: FlowMapSpec) -> None:
    """A causal network that peeks is better in training than it can be when it generates."""
    u, z, c, chunks = _causal(spec)
    other = z.clone()
    other[:, -chunks[-1] :] += 1.0
    past = slice(0, -chunks[-1])
    one, two = (sample(u, noise, c, steps=2)[:, past] for noise in (z, other))
    close(two, one, "generated frames change with the noise of later chunks")
    x, forced = u.teacher_forcing(z, c, Rng.seeded(0))
    t, r = times(z, 0.7, 0.2)
    noise = Rng.seeded(1).noise_like(x)
    changed = u(noise, t, r, u.teacher_forcing(other, c, Rng.seeded(0))[1])
    close(changed, u(noise, t, r, forced), "in the teacher-forced pass a chunk sees itself, or later ones, clean")
    noised = noise.clone()
    noised[:, -chunks[-1] :] += 1.0
    close(u(noised, t, r, forced)[:, past], u(noise, t, r, forced)[:, past], "a chunk sees the noise of later ones")


def check_cached_generation_is_what_was_trained(spec: FlowMapSpec) -> None:
    """Chunk after chunk through the cache must be the teacher-forced pass on the same history."""
    u, x, c, chunks = _causal(spec)
    kept, forced = u.teacher_forcing(x, c, Rng.seeded(0))
    noise, first = Rng.seeded(1).noise_like(kept), x.shape[1] - kept.shape[1]
    t, r = times(x, 0.7, 0.2)
    expected, cache, out, at = u(noise, t, r, forced), None, [], 0
    for n in chunks:
        if at >= first:
            out.append(u(noise[:, at - first : at - first + n], t, r, c, cache))
        cache = u.extend(cache, x[:, at : at + n], c)
        at += n
    close(torch.cat(out, 1), expected, "generating with the cache is not the teacher-forced pass")


def check_a_cache_is_a_snapshot(spec: FlowMapSpec) -> None:
    """Under activation checkpointing a cache is read again in the backward pass, and must be as it was."""
    u, x, c, chunks = _causal(spec)
    first, second = x.split(list(chunks), dim=1)[:2]
    t, r = times(x, 0.7, 0.2)
    cache = u.extend(None, first, c)
    before = u(second, t, r, c, cache)
    u.extend(cache, second, c)
    same(u(second, t, r, c, cache), before, "`extend` changed the cache it was given: return a new one")


def _causal(spec: FlowMapSpec) -> tuple[FlowMap, Tensor, Any, tuple[int, ...]]:
    """A perturbed student, an example, and its chunks; Skip where all frames come at once."""
    u, (x, c) = build(spec, "student")["student"], spec.example()
    chunks = u.chunks(x.shape[1])
    if len(chunks) == 1:
        raise Skip("all frames are generated in one chunk")
    perturb(u, 0)
    return u.requires_grad_(False), x, c, chunks
