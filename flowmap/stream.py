"""stream(student, prompt): a video's frames while it is being made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._types import Cond, Latent, Rng
from .chunked import chunks_after, serves
from .evaluation.sampling import encode_context, encode_image, latent_shape
from .model import Codec, FlowMap, Sampling
from .plugins import backbone
from .rollout import CHUNK, STEPS, Step, generate
from .times import Grid, Steps, grids_of
from .window import Window

MANY = 256
"""Latent frames by which chunks have their lasting size, of a video without end."""


def stream(
    student: str | Path,
    prompt: str,
    *,
    steps: Steps | None = None,
    frames: float | None = None,
    size: tuple[int, int] | None = None,
    context: Tensor | None = None,
    window: Window | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    pm: Any = None,
) -> Iterator[Tensor]:
    """The frames [n, 3, H, W] in [0, 1] of a video, chunk after chunk, each chunk's as soon as it is made.

    student: a directory that `distill` or `flowmap import` wrote. steps: 4, or as many levels as the student was made
    for; several, [4, 2], are of the chunks one by one, and the last repeats. frames, size: of the video, size as
    (height, width); as in training by default. context: frames [n, 3, H, W] in [0, 1] to go on from, one for
    image-to-video; they come first, through the codec like the rest. A student that makes all frames at once is told of
    its image instead. Concatenated, the video that `flowmap sample` makes from the same seed. A ValueError
    for what the student cannot do, before any is made.

    window: what is remembered of chunks long ago, `flowmap.window.Window`; then a video may be as long as one likes,
    and frames = math.inf is without end, its noise drawn chunk by chunk.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}: must be one string")
    path = Path(student)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such directory")
    spec = backbone(str(path), pm)
    own = Sampling.of(path)
    grids_of(own, steps, spec.shift)  # a wrong number is said before anything is loaded
    if context is not None:
        _check(context)
    endless = frames == math.inf
    if endless and window is None:
        raise ValueError("frames = inf would remember all of a video without end: give a window, such as Window(1, 6)")
    number = frames if isinstance(frames, int) else 1 if endless and size is not None else None
    if frames is not None and not endless and number is None:
        raise TypeError(f"frames = {frames}: must be a whole number, or math.inf")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    codec = spec.codec(device=device, dtype=dtype)
    shape = latent_shape(codec, path, number, size)
    shape = (MANY, *shape[1:]) if endless else shape
    u = spec.load(path, device=device, dtype=dtype)
    if window is not None:
        u.bound(window)
    image = encode_image(spec, codec, shape, context)
    given = encode_context(codec, u, shape, None if image else context).to(device)
    grid = grids_of(own, steps, spec.shift, u.boundary)
    past, rest = chunks_after(u, shape[0], given.shape[1])
    serves(u, grid, len(past) + len(rest))
    grid = grid.to(device) if isinstance(grid, Tensor) else [each.to(device) for each in grid]
    like, rng = torch.zeros(1, *shape, device=device), Rng.seeded(seed)
    noise: Iterable[Latent] = rng.noise_like(like).split((*past, *rest), dim=1)[len(past) :]
    if endless:  # the last of the sizes is cut to fit
        numbered = zip(count(), chain(rest[:-1], repeat(rest[-2])), strict=False)
        noise = (rng.fork(CHUNK, k).noise_like(like[:, :n]) for k, n in numbered)
    cond = {**codec.encode_prompts([prompt]), **image}
    return _frames(codec, u, noise, cond, grid, given.split(past, dim=1), STEPS[own.kind])


@torch.no_grad()
def _frames(
    codec: Codec,
    u: FlowMap,
    noise: Iterable[Latent],
    cond: Cond,
    grid: Grid,
    given: Sequence[Latent],
    step: Step,
) -> Iterator[Tensor]:
    """Made in the order in which they are asked for: no chunk before the frames of the one before it were taken."""
    made = generate(u, noise, cond, grid, None, given=given, step=step)
    for frames in codec.decode_chunks(chain(given, made)):
        yield frames[0]


def _check(context: Tensor) -> None:
    if not isinstance(context, Tensor):
        raise TypeError(f"context is a {type(context).__name__}: must be a tensor [n, 3, height, width] in [0, 1]")
    if context.ndim != 4 or context.shape[1] != 3 or not len(context):
        raise ValueError(f"context is {tuple(context.shape)}: must be [n, 3, height, width], n at least 1")
    low, high = float(context.min()), float(context.max())
    if not (context.is_floating_point() and 0.0 <= low <= high <= 1.0):
        raise ValueError(f"context is {context.dtype}, from {low:g} to {high:g}: must be floats in [0, 1]")
