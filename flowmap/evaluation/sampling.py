"""Videos from a student on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, Latent, Rng
from ..chunked import chunks_after
from ..model import Codec, FlowMap, FlowMapSpec, Sampling, conditions_of_images
from ..rollout import STEPS, sample
from ..times import grid_of
from ..window import Window
from .previews import tile, write_labelled, write_video

LONGEST = 16  # video frames to a latent one: more than any codec has
MANY = 2**31


def grid_of_samples(
    backbone: FlowMapSpec,
    student: Path,
    prompts: Sequence[str],
    steps: Sequence[int] | None,
    seed: int,
    size: tuple[int, int, int] | None,
    out: str | Path,
    context: Tensor | None = None,
    u: FlowMap | None = None,
    device: torch.device | None = None,
    *,
    shape: tuple[int, int, int, int] | None = None,
    shift: float | None = None,
    own: Sampling | None = None,
    rows: tuple[int, int] = (1, MANY),
    window: Window | None = None,
) -> None:
    """One video with a row a prompt and a column a number of steps; along a row the noise is the same. In a .png of
    several they have labels.

    steps: None is the student's own number. context: frames [n, 3, H, W] in [0, 1] that every video goes on from, or
    the image that it begins with. u: takes the place of the student's network; shape: of its latents, where no `size`
    is given; shift, own: of its sampler. Else the student's own. rows: how few and how many prompts `u` takes at once;
    more are made in several calls. window: what a student remembers that makes chunk after chunk.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = backbone.codec(device=device, dtype=torch.float32)
    frames, area = (None, None) if size is None else (size[0], size[1:])
    shape = shape if shape is not None and size is None else latent_shape(codec, student, frames, area)
    u = u or backbone.load(student, device=device, dtype=torch.float32)
    if window is not None:
        u.bound(window)
    image = encode_image(backbone, codec, shape, context)
    given = encode_context(codec, u, shape, None if image else context).expand(len(prompts), *(-1,) * len(shape))
    cond = codec.encode_prompts(prompts)
    cond = {**cond, **{name: value.expand(len(prompts), *value.shape[1:]) for name, value in image.items()}}
    noise = Rng.seeded(seed).noise_like(torch.zeros(len(prompts), *shape, device=device))
    own, shift = own or Sampling.of(student), backbone.shift if shift is None else shift
    grids = [grid_of(own, n, shift, u.boundary) for n in steps or (None,)]
    parts = [slice(k, k + rows[1]) for k in range(0, len(prompts), rows[1])]

    def some(a: Tensor, part: slice) -> Tensor:
        own = a[part]
        return torch.cat([own, own[-1:].expand(max(0, rows[0] - len(own)), *own.shape[1:])])

    def latents(part: slice, grid: Tensor) -> Latent:
        texts = {name: some(value, part) for name, value in cond.items()}
        x = sample(u, some(noise, part), texts, grid=grid, step=STEPS[own.kind], context=some(given, part))
        return x[: len(noise[part])]

    made = [codec.decode(torch.cat([latents(part, grid) for part in parts])).cpu() for grid in grids]
    if Path(out).suffix == ".png" and len(prompts) * len(grids) > 1:
        write_labelled(dict(zip([len(grid) - 1 for grid in grids], made, strict=True)), prompts, Path(out))
        return
    write_video(tile(torch.stack(made, 1).flatten(0, 1), columns=len(grids)), Path(out))


def latent_shape(
    codec: Codec, student: Path, frames: int | None = None, size: tuple[int, int] | None = None
) -> tuple[int, int, int, int]:
    """(F, C, h, w) of a video of `frames` of `size`; what is None is as the student was trained."""
    if frames is not None and size is not None:
        return codec.latent_shape(frames, *size)
    f, c, h, w = trained = _trained(student)
    if size is not None:
        return f, *codec.latent_shape(1, *size)[1:]
    return trained if frames is None else codec.latent_shape(frames, *_size(codec, c, h, w))


def encode_image(backbone: FlowMapSpec, codec: Codec, shape: tuple[int, int, int, int], context: Tensor | None) -> Cond:
    """What networks that begin with an image are told of `context` [1, 3, H, W], entries [1, ...]; {} of others.

    A ValueError where there is no image, or none of the video's size.
    """
    if not backbone.images:
        return {}
    if context is None:
        raise ValueError("this student begins with an image, and there is none: give one as context (--context FILE)")
    n, _, height, width = context.shape
    if n != 1:
        raise ValueError(f"context has {n} frames: this student begins with an image, one frame")
    require_size(codec, shape, context)
    return conditions_of_images(codec, context, video_frames(codec, shape[0], height, width))


def require_size(codec: Codec, shape: tuple[int, int, int, int], context: Tensor) -> None:
    """A ValueError where `context` [n, 3, H, W] is not of the size of videos with latents of `shape`."""
    n, _, height, width = context.shape
    if codec.latent_shape(n, height, width)[1:] != shape[1:]:
        wanted = "x".join(map(str, _size(codec, *shape[1:])))
        raise ValueError(f"context is {height}x{width}, and the video {wanted}: scale or cut it to that")


def video_frames(codec: Codec, frames: int, height: int, width: int) -> int:
    """Of a video with so many latent frames."""
    for n in range(1, LONGEST * frames + 1):
        with suppress(ValueError):
            if codec.latent_shape(n, height, width)[0] == frames:
                return n
    raise ValueError(f"no video of {height}x{width} has {frames} latent frames")


def encode_context(codec: Codec, u: FlowMap, shape: tuple[int, int, int, int], context: Tensor | None) -> Latent:
    """`context` [n, 3, H, W] as latents [1, F0, C, h, w]; a ValueError where `u` cannot go on from them to `shape`.

    None is no frames: F0 = 0.
    """
    if context is None:
        return torch.zeros(1, 0, *shape[1:])
    if len(u.chunks(shape[0])) == 1:
        raise ValueError(
            f"this student makes all {shape[0]} latent frames at once and takes no context: one that makes them chunk "
            "after chunk does, and one from images to videos"
        )
    n, _, height, width = context.shape
    require_size(codec, shape, context)
    first = codec.latent_shape(n, height, width)
    try:
        chunks_after(u, shape[0], first[0])
    except ValueError as error:
        good = [str(m) for m in range(1, LONGEST * shape[0]) if _follows(codec, u, shape[0], (m, height, width))]
        told = f"video frames of context = {n}: must be {' or '.join(good)}; in latents, " if good else ""
        raise ValueError(f"{told}{error}") from None
    return codec.encode(context[None])


def _follows(codec: Codec, u: FlowMap, frames: int, video: tuple[int, int, int]) -> bool:
    """Whether the chunks of `frames` can go on from a video of that size."""
    try:
        return bool(chunks_after(u, frames, codec.latent_shape(*video)[0]))
    except ValueError:
        return False


def _size(codec: Codec, c: int, h: int, w: int) -> tuple[int, int]:
    """Height and width of the video of such latents: a codec tells the other way round, so one frame is decoded."""
    height, width = codec.decode(torch.zeros(1, 1, c, h, w)).shape[-2:]
    return height, width


def _trained(student: Path) -> tuple[int, int, int, int]:
    """Of the latents that the student was trained on."""
    if not (facts := _facts(student)):
        raise ValueError(f"{student} has no flowmap.json, which says a video's size: say frames, height and width")
    if "latent_shape" not in facts:  # of weights that others published
        raise ValueError(f"{student} does not say which size it was trained on: say frames, height and width")
    f, c, h, w = facts["latent_shape"]
    return f, c, h, w


def _facts(student: Path) -> dict[str, Any]:
    """What `distill` wrote beside the weights; nothing, where another has written them."""
    file = student / "flowmap.json"
    return json.loads(file.read_text()) if file.is_file() else {}
