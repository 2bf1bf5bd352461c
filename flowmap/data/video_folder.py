"""A user's own clips: a folder of videos with captions, encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from attrs import asdict, field, frozen
from torch import Tensor

from .. import validators
from .._types import Cond, concat
from ..model import Codec, FlowMapSpec, conditions_of_images
from .decode import Clip, find, fit, frames_of, frames_said
from .format import INDEX, BadSamplesError, DataError, Plan, told
from .journal import JOB
from .place import require_directory
from .shards import LatentShards
from .writer import Made, Progress, stored, write

__all__ = ["VideoFolder", "frames_of"]

positive = validators.ge(1)
PIXELS = 1 << 26
"""In one call of the encoder: two clips of Wan's size."""
LOOKING = 8
"""Threads that look at files before any is encoded."""
SKIP = '--skip-bad, in a recipe VideoFolder(bad="skip")'


class BadClipsError(DataError):
    """Some clips cannot be encoded; the others are."""


@frozen
class VideoFolder:
    """`path/*.mp4`, each with its caption in a text file of the same name or in `path/captions.json`; or tars.

    Every clip is its first `frames` frames, scaled and cut about the centre to height × width. null_prompt: what
    guidance calls the unconditional prompt; Wan's is its standard negative prompt. The encoded form goes to
    `run/data` (or `cache`) and is used again where it was made from the same files by the same backbone; cut short, it
    is gone on with; several processes share the work. shard: clips in a file, and in a call of the encoder. bad: what
    becomes of clips that cannot be read or are too short: "raise" names them all, having encoded the others, and the
    same with "skip" then leaves them out, at the cost of their shards alone.
    """

    path: str = field(converter=str)
    frames: int = field(default=81, validator=positive)
    height: int = field(default=480, validator=positive)
    width: int = field(default=832, validator=positive)
    null_prompt: str = ""
    cache: str | None = None
    shard: int = field(default=16, validator=positive)
    bad: Literal["raise", "skip"] = field(default="raise", validator=validators.in_(("raise", "skip")))

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
        clips = self.clips()
        seen = json.dumps([[clip.key, clip.size, clip.caption] for clip in clips])
        own = asdict(self, filter=lambda a, _: a.name not in ("cache", "shard", "bad"))
        made_from = {"folder": own, "backbone": repr(backbone), "dtype": str(dtype)}
        made_from["clips"] = hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()
        plan = Plan(len(clips), self.shard, made_from, backbone.encoders())

        def maker() -> Encoder:
            codec = backbone.codec(device=device, dtype=dtype)
            try:
                codec.latent_shape(self.frames, self.height, self.width)
            except ValueError as error:
                raise DataError(f"VideoFolder: {error}") from error
            return Encoder(self, clips, codec, dtype)

        if self.bad == "raise" and not (out / INDEX).is_file() and not (out / JOB).is_file():
            self._look(clips)
        try:
            return write(out, plan, maker, part=part, replace=replace, progress=progress)
        except BadSamplesError as error:
            raise BadClipsError(
                f"{len(error.samples)} of {len(clips)} clips cannot be encoded; the others are, in {out}, and the same "
                f"with {SKIP} leaves these out:{told(error.samples)}"
            ) from error

    def _look(self, clips: Sequence[Clip]) -> None:
        """An error that names all clips whose files say that they are no video, or too short; nothing is decoded.

        Those in tars are left to the encoding: to look into one is to read it.
        """
        files = [clip for clip in clips if clip.offset is None]
        with ThreadPoolExecutor(LOOKING) as pool:
            said = [*pool.map(frames_said, [clip.file for clip in files])]
        wrong = [
            (clip.key, why)
            for clip, n in zip(files, said, strict=True)
            if (why := n if isinstance(n, str) else self._short(clip, n)) is not None
        ]
        if wrong:
            many = f"{len(wrong)} of {len(clips)} clips cannot be encoded, and nothing was begun"
            raise DataError(f"{many}: mend them, or leave them out with {SKIP}:{told(wrong)}")

    def _short(self, clip: Clip, frames: int | None) -> str | None:
        """What is to be said of a clip with so many frames; None where that is enough, or not known."""
        if frames is None or frames >= self.frames:
            return None
        name = str(clip.file) if clip.offset is None else f"{clip.file}: {clip.key}"
        return f"{name} has {frames} frames: must have at least {self.frames} (VideoFolder.frames, --size)"

    def fingerprint(self) -> str:
        """Of the clips' names, sizes and captions, and of how they are cut: nothing is decoded."""
        own = [self.frames, self.height, self.width, self.null_prompt]
        seen = json.dumps([own, [[clip.key, clip.size, clip.caption] for clip in self.clips()]])
        return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()

    def clips(self) -> list[Clip]:
        """The clips with their captions, or an error that names what is missing."""
        return find(Path(self.path))

    def read(self, clip: Clip) -> Tensor:
        """[frames, 3, height, width] in [0, 1]."""
        video = clip.frames(self.frames)
        if (short := self._short(clip, len(video))) is not None:
            raise DataError(short)
        return fit(video, self.height, self.width)


@frozen
class Encoder:
    """Makes samples of clips."""

    folder: VideoFolder
    clips: list[Clip]
    codec: Codec
    dtype: torch.dtype

    def null(self) -> Cond:
        return self.codec.encode_prompts([self.folder.null_prompt])

    def samples(self, first: int, last: int) -> Made:
        clips = self.clips[first:last]
        most = max(1, PIXELS // (self.folder.frames * self.folder.height * self.folder.width))
        good: list[Clip] = []
        bad: list[tuple[str, str]] = []
        x: list[Tensor] = []
        own: list[Cond] = []
        for group in (clips[i : i + most] for i in range(0, len(clips), most)):
            videos = []
            for clip in group:
                try:
                    videos.append(self.folder.read(clip))
                    good.append(clip)
                except DataError as error:
                    bad.append((clip.key, str(error)))
            if videos and (not bad or self.folder.bad == "skip"):
                together = torch.stack(videos)
                x.append(self.codec.encode(together).cpu())
                own.append(conditions_of_images(self.codec, together[:, 0], self.folder.frames))
        if bad and self.folder.bad == "raise":
            raise BadSamplesError(bad)
        if not good:
            return Made(torch.empty(0), (), {}, bad)
        prompts = [clip.caption for clip in good]
        texts = self.codec.encode_prompts([*dict.fromkeys(prompts)])
        made = Made(torch.cat(x), prompts, texts, bad, concat(*own))
        return stored(made, torch.float32, self.dtype)
