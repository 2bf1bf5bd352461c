"""A user's own clips: a folder of videos with captions, encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from attrs import asdict, field, frozen
from torch import Tensor
from torch.nn import functional as F

from .. import validators
from .._types import Cond
from ..model import Codec, FlowMapSpec
from .clips import Clip, find, frames_of
from .format import DataError, Plan
from .shards import LatentShards
from .writer import Made, Progress, stored, write

__all__ = ["VideoFolder", "frames_of"]

positive = validators.ge(1)
PIXELS = 1 << 26
"""In one call of the encoder: two clips of Wan's size."""


@frozen
class VideoFolder:
    """`path/*.mp4`, each with its caption in a text file of the same name or in `path/captions.json`; or tars.

    Every clip is its first `frames` frames, scaled and cut about the centre to height × width. null_prompt: what
    guidance calls the unconditional prompt; Wan's is its standard negative prompt. The encoded form goes to
    `run/data` (or `cache`) and is used again where it was made from the same files by the same backbone; cut short, it
    is gone on with; several processes share the work. shard: clips in a file, and in a call of the encoder.
    """

    path: str = field(converter=str)
    frames: int = field(default=81, validator=positive)
    height: int = field(default=480, validator=positive)
    width: int = field(default=832, validator=positive)
    null_prompt: str = ""
    cache: str | None = None
    shard: int = field(default=16, validator=positive)

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
        clips = self.clips()
        seen = json.dumps([[clip.key, clip.size, clip.caption] for clip in clips])
        own = asdict(self, filter=lambda a, _: a.name not in ("cache", "shard"))
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

        return write(out, plan, maker, part=part, replace=replace, progress=progress)

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
        if len(video) < self.frames:
            raise DataError(
                f"{clip.file if clip.offset is None else f'{clip.file}: {clip.key}'} has {len(video)} frames: "
                f"must have at least VideoFolder.frames = {self.frames}"
            )
        return _fit(video, self.height, self.width)


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
        prompts = [clip.caption for clip in clips]
        most = max(1, PIXELS // (self.folder.frames * self.folder.height * self.folder.width))
        groups = [clips[i : i + most] for i in range(0, len(clips), most)]
        x = [self.codec.encode(torch.stack([self.folder.read(clip) for clip in group])).cpu() for group in groups]
        made = Made(torch.cat(x), prompts, self.codec.encode_prompts([*dict.fromkeys(prompts)]))
        return stored(made, torch.float32, self.dtype)


def _fit(video: Tensor, height: int, width: int) -> Tensor:
    """Scale to cover height × width, keeping the aspect ratio, and cut about the centre."""
    h, w = video.shape[-2:]
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    video = F.interpolate(video, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[..., top : top + height, left : left + width]
