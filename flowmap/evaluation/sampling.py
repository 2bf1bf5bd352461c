"""Videos from a student on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from attrs import define
from torch import Tensor

from .._types import Cond, Latent, Rng
from ..atomic import partial
from ..chunked import chunks_after, serves
from ..model import Codec, FlowMap, FlowMapSpec, Sampling, conditions_of_images
from ..rollout import STEPS, sample
from ..times import Grid, Steps, grids_of, of_chunk, told
from ..window import Window
from .previews import write_labelled, write_video

Tick: TypeAlias = Callable[[int], object]
Bar: TypeAlias = Callable[[int], AbstractContextManager[Tick]]
"""Of so many steps in all, what is told of each."""
LONGEST_NAME = 240  # bytes of a prompt that a file is called by; file systems take 255
LONGEST = 16  # video frames to a latent one: more than any codec has
MANY = 2**31


@contextmanager
def silent(total: int) -> Iterator[Tick]:
    yield lambda n: None


@define
class Maker:
    """A student that makes videos of prompts, with what it needs loaded. A sample depends on its prompt, its noise and
    the number of steps, and on no other sample.

    shape: of the latents of a video. given: latents that every video goes on from, [1, F0, C, h, w]; image: what it is
    told of the image that it begins with. rows: how few and how many samples the network takes at once; more are made
    in several calls.
    """

    u: FlowMap
    codec: Codec
    shape: tuple[int, int, int, int]
    own: Sampling
    shift: float
    given: Latent
    image: Cond
    rows: tuple[int, int]
    device: torch.device

    @classmethod
    def of(
        cls,
        backbone: FlowMapSpec,
        student: Path,
        size: tuple[int, int, int] | None = None,
        context: Tensor | None = None,
        u: FlowMap | None = None,
        device: torch.device | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        shape: tuple[int, int, int, int] | None = None,
        shift: float | None = None,
        own: Sampling | None = None,
        rows: tuple[int, int] = (1, MANY),
        window: Window | None = None,
    ) -> Maker:
        """context: frames [n, 3, H, W] in [0, 1] that every video goes on from, or the image that it begins with. u:
        takes the place of the student's network; shape: of its latents, where no `size` is given; shift, own: of its
        sampler. Else the student's own. dtype: of the network. window: what a student remembers that makes chunk after
        chunk."""
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        codec = backbone.codec(device=device, dtype=torch.float32)
        frames, area = (None, None) if size is None else (size[0], size[1:])
        shape = shape if shape is not None and size is None else latent_shape(codec, student, frames, area)
        u = u or backbone.load(student, device=device, dtype=dtype)
        if window is not None:
            u.bound(window)
        image = encode_image(backbone, codec, shape, context)
        given = encode_context(codec, u, shape, None if image else context)
        shift = backbone.shift if shift is None else shift
        return cls(u, codec, shape, own or Sampling.of(student), shift, given, image, rows, device)

    def noise(self, seed: int, samples: int) -> Latent:
        return Rng.seeded(seed).noise_like(torch.zeros(samples, *self.shape, device=self.device))

    def grid(self, steps: Steps | None) -> Grid:
        """steps: None is the student's own number; several are of the chunks one by one, and the last repeats. A
        ValueError where they are of more chunks than a video has."""
        grid = grids_of(self.own, steps, self.shift, self.u.boundary)
        serves(self.u, grid, sum(map(len, self._chunks)))
        return grid

    def calls(self, samples: int, grid: Grid) -> int:
        """Steps of the network for so many samples."""
        past, rest = self._chunks
        steps = sum(len(of_chunk(grid, k)) - 1 for k in range(len(past), len(past) + len(rest)))
        return math.ceil(samples / self.rows[1]) * steps

    @property
    def _chunks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return chunks_after(self.u, self.shape[0], self.given.shape[1])

    def conditions(self, prompts: Sequence[str]) -> Cond:
        image = {name: value.expand(len(prompts), *value.shape[1:]) for name, value in self.image.items()}
        return {**self.codec.encode_prompts(prompts), **image}

    def videos(self, cond: Cond, noise: Latent, grid: Grid, tick: Tick = lambda n: None) -> Tensor:
        """[N, frames, 3, height, width] in [0, 1], on the CPU. tick: is told of every step of the network."""
        given = self.given.expand(len(noise), *self.given.shape[1:])
        step = STEPS[self.own.kind]

        def ticking(*call: Any) -> Latent:
            tick(1)
            return step(*call)

        def some(a: Tensor, part: slice) -> Tensor:
            own = a[part]
            return torch.cat([own, own[-1:].expand(max(0, self.rows[0] - len(own)), *own.shape[1:])])

        def latents(part: slice) -> Latent:
            texts = {name: some(value, part) for name, value in cond.items()}
            x = sample(self.u, some(noise, part), texts, grid=grid, step=ticking, context=some(given, part))
            return x[: len(noise[part])]

        parts = [slice(k, k + self.rows[1]) for k in range(0, len(noise), self.rows[1])]
        return self.codec.decode(torch.cat([latents(part) for part in parts])).cpu()


def grid_of_samples(
    maker: Maker,
    prompts: Sequence[str],
    steps: Sequence[Steps] | None,
    seed: int,
    out: str | Path,
    fps: float | None = None,
    bar: Bar = silent,
) -> None:
    """One picture or video with a row a prompt and a column a number of steps, which have labels where there are
    several; along a row the noise is the same. steps: None is the student's own number. fps: frames a second."""
    cond, noise = maker.conditions(prompts), maker.noise(seed, len(prompts))
    grids = {told(n): maker.grid(n) for n in steps or (len(of_chunk(maker.grid(None), 0)) - 1,)}
    with bar(sum(maker.calls(len(prompts), grid) for grid in grids.values())) as tick:
        made = {label: maker.videos(cond, noise, grid, tick) for label, grid in grids.items()}
    if len(prompts) * len(grids) > 1:
        write_labelled(made, prompts, Path(out), fps)
    else:
        write_video(next(iter(made.values()))[0], Path(out), fps)


def one_each(
    maker: Maker,
    prompts: Sequence[str],
    steps: Steps | None,
    seed: int,
    samples: int,
    out: Path,
    fps: float | None = None,
    bar: Bar = silent,
    at_once: int = 8,
) -> list[Path]:
    """`OUT/PROMPT-I.mp4` of every prompt and I = 0 ... samples - 1, as VBench 0.1.5 reads them; sample I has the noise
    of seed + I, whatever the prompt. What is there is not made again. Nothing else is written there: that reader takes
    the ending of the first file that it finds for that of all.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {(prompt, i): out / named(prompt, i) for prompt in dict.fromkeys(prompts) for i in range(samples)}
    todo = [key for key, file in files.items() if not file.exists()]
    grid, most = maker.grid(steps), min(at_once, maker.rows[1])
    parts = [todo[k : k + most] for k in range(0, len(todo), most)]
    with bar(sum(maker.calls(len(part), grid) for part in parts)) as tick:
        for part in parts:
            noise = torch.cat([maker.noise(seed + i, 1) for _, i in part])
            made = maker.videos(maker.conditions([prompt for prompt, _ in part]), noise, grid, tick)
            for key, video in zip(part, made, strict=True):
                begun = partial(files[key]).with_suffix(".mp4")
                write_video(video, begun, fps, plain=True)
                begun.replace(files[key])
    return [*files.values()]


def named(prompt: str, index: int) -> str:
    """The name of a sample's file; a ValueError for a prompt that no file can be called by."""
    if "/" in prompt or "\0" in prompt or len(prompt.encode()) > LONGEST_NAME:
        raise ValueError(f"prompt {prompt!r}: a file is called by it: must have no / and at most {LONGEST_NAME} bytes")
    return f"{prompt}-{index}.mp4"


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


def video_size(codec: Codec, shape: Sequence[int]) -> tuple[int, int, int]:
    """(frames, height, width) of the video with latents of `shape`, (F, C, h, w)."""
    frames, c, h, w = shape
    height, width = _size(codec, c, h, w)
    return video_frames(codec, frames, height, width), height, width


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
