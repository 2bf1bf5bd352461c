"""A user's own clips: a folder of videos with captions, encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

import torch
from attrs import asdict, evolve, field, frozen

from .. import validators
from ..doing import tell
from ..model import FlowMapSpec, require_short
from .buckets import Size, of_size
from .clip import Clip
from .clips import find
from .decode import Take, Video, decode, frames_of
from .encoder import Encoder
from .format import INDEX, BadSamplesError, DataError, Plan, told
from .journal import JOB
from .length import counted, reaches
from .place import require_directory
from .shards import LatentShards
from .writer import Progress, write

__all__ = ["VideoFolder", "frames_of"]

T = TypeVar("T")
positive = validators.ge(1)
LOOKING = 8
"""Threads that look at files before any is encoded."""
SKIP = '--skip-bad, in a recipe VideoFolder(bad="skip")'
READER = 2
"""The version of how clips are read: 1 took pictures as they are stored, at the rate at which they come."""


class BadClipsError(DataError):
    """Some clips cannot be encoded; the others are."""


class NoClipsError(DataError):
    """There are clips, but none of them for this size."""


def _rate(value: object) -> object:
    return float(value) if isinstance(value, int) else value


@frozen
class VideoFolder:
    """The videos of a folder, each with its caption in a text file of the same name or in `captions.json`; or tars.

    Every sample is `frames` frames of a clip, `fps` a second, as a player shows them, scaled to cover height ×
    width and cut about the centre; by default of the backbone's `usual` size. fps: None is the backbone's own rate;
    "keep" takes all frames of a clip, as does None for a backbone that has none. windows: at most so many samples
    of a clip, each `stride` frames after the one before, by default `frames`. caption: of clips that have none.
    prefix: before every caption. among: sizes, this one of them: only clips that it suits best are taken.
    null_prompt: what guidance calls the unconditional prompt; Wan's is its standard negative prompt. The encoded
    form goes to `run/data` (or `cache`) and is used again where it was made from the same files by the same
    backbone; cut short, it is gone on with; several processes share the work. shard: samples in a file. bad: what
    becomes of clips that cannot be read, are too short or have no caption: "raise" names them all, having encoded
    the others, and the same with "skip" then leaves them out, at the cost of their shards alone.
    """

    path: str = field(converter=str)
    frames: int | None = field(default=None, validator=validators.optional(positive))
    height: int | None = field(default=None, validator=validators.optional(positive))
    width: int | None = field(default=None, validator=validators.optional(positive))
    null_prompt: str = ""
    cache: str | None = None
    shard: int = field(default=16, validator=positive)
    bad: Literal["raise", "skip"] = field(default="raise", validator=validators.in_(("raise", "skip")))
    fps: float | Literal["keep"] | None = field(default=None, kw_only=True, converter=_rate)
    windows: int = field(default=1, kw_only=True, validator=positive)
    stride: int | None = field(default=None, kw_only=True, validator=validators.optional(positive))
    caption: str | None = field(default=None, kw_only=True)
    prefix: str = field(default="", kw_only=True)
    among: tuple[Size, ...] = field(default=(), kw_only=True)

    @fps.validator
    def _above(self, attribute: object, fps: object) -> None:
        if fps not in (None, "keep") and not (isinstance(fps, float) and 0.0 < fps <= 1000.0):
            raise ValueError(f'VideoFolder.fps = {fps!r}: must be above 0 and at most 1000, or "keep"')

    def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> LatentShards:
        place = Path(self.cache) if self.cache is not None else cache and cache / "data"
        if place is None:
            raise DataError("VideoFolder encodes to disk: give `out` to distill, or VideoFolder.cache")
        data = self.encode(backbone, place, device=device, replace=True)
        assert data is not None  # of one part
        return data

    def encode(
        self,
        backbone: FlowMapSpec,
        out: Path,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        part: tuple[int, int] = (1, 1),
        replace: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> LatentShards | None:
        """Encode into the directory `out`, or what is left of it, as `writer.write` does.

        dtype: of VAE and text encoder, and of texts on the disk; latents are float32.
        """
        require_directory(out)
        settled = self._settled(backbone)
        tell("listing the clips")
        clips = settled.clips()
        if self.among and not (clips := of_size(clips, settled.size, self.among, settled._every)):
            raise NoClipsError(f"{self.path}: of no clip {settled.size} is the best size among {self.among}")
        if self.bad == "raise" and not (out / INDEX).is_file() and not (out / JOB).is_file():
            settled._look(clips)
        windows = settled._windows(clips)
        seen = json.dumps([[clip.key, clip.size, clip.caption, first] for clip, first in windows])
        own = asdict(settled, filter=lambda a, _: a.name not in ("cache", "shard", "bad"))
        made_from = {"folder": own, "reader": READER, "backbone": repr(backbone), "dtype": str(dtype)}
        made_from["clips"] = hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()
        tell("hashing the encoders")
        plan = Plan(len(windows), self.shard, made_from, backbone.encoders())

        def maker() -> Encoder:
            tell("loading the encoders")
            try:
                codec = backbone.codec(device=device, dtype=dtype)
                codec.latent_shape(*settled.size)
                require_short(codec, [*dict.fromkeys([*(clip.caption or "" for clip in clips), self.null_prompt])])
            except (ValueError, NotImplementedError) as error:
                raise DataError(f"VideoFolder: {error}") from error
            skip = self.bad == "skip"
            return Encoder(windows, settled.read, settled.size, self.null_prompt, skip, codec, device, dtype)

        try:
            return write(out, plan, maker, part=part, replace=replace, progress=progress)
        except BadSamplesError as error:
            raise BadClipsError(
                f"{len(error.samples)} of {len(windows)} clips cannot be encoded; the others are, in {out}, and the "
                f"same with {SKIP} leaves these out:{told(error.samples)}"
            ) from error

    def _settled(self, backbone: FlowMapSpec) -> VideoFolder:
        """With all that the backbone says by default."""
        frames, height, width = backbone.usual().size or (None, None, None)
        settled = evolve(
            self,
            frames=self.frames or frames,
            height=self.height or height,
            width=self.width or width,
            fps=self.fps or backbone.frame_rate() or "keep",
        )
        try:
            _ = settled.size
        except DataError as error:
            raise DataError(f"{backbone.about().name} says no size of its videos, and {error}") from None
        return settled

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        if self.frames is None or self.height is None or self.width is None:
            raise DataError("neither does the folder: give one (VideoFolder.frames, height, width; --size)")
        return self.frames, self.height, self.width

    def _look(self, clips: Sequence[Clip]) -> None:
        """An error that names all clips without a caption, and those that say that they are no video, or too short."""
        said = _of_each(self._wrong, clips)
        if wrong := [(clip.key, why) for clip, why in zip(clips, said, strict=True) if why is not None]:
            many = f"{len(wrong)} of {len(clips)} clips cannot be encoded, and nothing was begun"
            raise DataError(f"{many}: mend them, or leave them out with {SKIP}:{told(wrong)}")

    def _wrong(self, clip: Clip) -> str | None:
        if (without := self._captionless(clip)) is not None:
            return without
        try:
            return self._short(clip, reaches(clip.source(), clip.name, self._every, self.size[0]))
        except DataError as error:
            return str(error)

    def _captionless(self, clip: Clip) -> str | None:
        if clip.caption is not None:
            return None
        beside = "same name, .txt, or in captions.json" if clip.offset is None else "same key, .txt or .json"
        return clip.wrong or f"{clip.name} has no caption ({beside}; or --caption, VideoFolder.caption, for all)"

    def _short(self, clip: Clip, frames: int | None, first: int = 0) -> str | None:
        """What is to be said of a clip with so many frames; None where that is enough, or not known."""
        if frames is None or frames >= self.size[0]:
            return None
        rate = "" if self._every is None else f" at {float(self._every):g} a second"
        there = f" from frame {first} on" if first else ""
        has = f"{clip.name} has {frames} frames{rate}{there}"
        return f"{has}: must have at least {self.size[0]} (VideoFolder.frames, --size)"

    @property
    def _every(self) -> Fraction | None:
        """The rate as a number that times are compared with exactly; None takes all frames."""
        return None if isinstance(self.fps, str | None) else Fraction(self.fps).limit_denominator(10**6)

    def _windows(self, clips: Sequence[Clip]) -> list[tuple[Clip, int]]:
        """Of every clip the first frames of its samples; of one that cannot be read, the first sample."""
        if self.windows == 1:
            return [(clip, 0) for clip in clips]
        stride = self.stride or self.size[0]
        frames = _of_each(self._counted, clips)
        return [
            (clip, k * stride)
            for clip, n in zip(clips, frames, strict=True)
            for k in range(max(1, min(self.windows, (n - self.size[0]) // stride + 1)))
        ]

    def _counted(self, clip: Clip) -> int:
        try:
            return counted(clip.source(), clip.name, self._every)
        except DataError:
            return 0

    def fingerprint(self) -> str:
        """Of the clips' names, sizes and captions, and of how they are cut: nothing is decoded."""
        own = asdict(self, filter=lambda a, _: a.name not in ("path", "cache", "shard", "bad"))
        seen = json.dumps([READER, own, [[clip.key, clip.size, clip.caption] for clip in self.clips()]])
        return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()

    def clips(self) -> list[Clip]:
        """The clips with the captions that they are trained with, or an error that says why there are none."""
        return [self._with_caption(clip) for clip in find(Path(self.path))]

    def _with_caption(self, clip: Clip) -> Clip:
        own = clip.caption if clip.caption is not None or clip.wrong is not None else self.caption
        return clip if own is None else evolve(clip, caption=self.prefix + own)

    def read(self, clip: Clip, first: int = 0) -> Video:
        """`frames` frames of height × width."""
        if (without := self._captionless(clip)) is not None:
            raise DataError(without)
        frames, height, width = self.size
        video = decode(clip.source(), clip.name, Take(frames, self._every, first), (height, width))
        if (short := self._short(clip, len(video.frames), first)) is not None:
            raise DataError(short)
        return video


def _of_each(look: Callable[[Clip], T], clips: Sequence[Clip]) -> list[T]:
    """What `look` says of every clip, in their order."""
    found: list[T] = []
    tell("looking at clips", 0, len(clips))
    with ThreadPoolExecutor(LOOKING) as pool:
        for said in pool.map(look, clips):
            found.append(said)
            tell("looking at clips", len(found), len(clips))
    return found
