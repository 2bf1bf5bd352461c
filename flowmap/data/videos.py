"""A user's own clips: a folder of videos with captions, encoded once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, field, frozen, validators
from torch import Tensor
from torch.nn import functional as F

from .._types import Latent
from ..model import Codec, FlowMapSpec
from .shards import INDEX, DataError, LatentShards, write

positive = validators.ge(1)


@frozen
class VideoFolder:
    """`path/*.mp4`, each with its caption in a text file of the same name.

    Every clip is its first `frames` frames, scaled and cut about the centre to height × width. null_prompt: what
    guidance calls the unconditional prompt; Wan's is its standard negative prompt. The encoded form goes to
    `run/data` (or `cache`) and is used again where it was made from the same files by the same backbone.
    """

    path: str = field(converter=str)
    frames: int = field(default=81, validator=positive)
    height: int = field(default=480, validator=positive)
    width: int = field(default=832, validator=positive)
    null_prompt: str = ""
    cache: str | None = None
    shard: int = field(default=16, validator=positive)

    def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> LatentShards:
        clips = self.clips()
        made_from = {"folder": asdict(self), "backbone": repr(backbone), "clips": [_stamp(file) for file, _ in clips]}
        made_from = json.loads(json.dumps(made_from))
        place = Path(self.cache) if self.cache is not None else cache and cache / "data"
        if place is None:
            raise DataError("VideoFolder encodes to disk: give `out` to distill, or VideoFolder.cache")
        if (place / INDEX).is_file() and (found := LatentShards.open(place)).index["made_from"] == made_from:
            return found
        codec = backbone.codec(device=device, dtype=torch.float32)
        try:
            codec.latent_shape(self.frames, self.height, self.width)
        except ValueError as error:
            raise DataError(f"VideoFolder: {error}") from error
        captions = sorted({caption for _, caption in clips})
        rows = [captions.index(caption) for _, caption in clips]
        cond, null = codec.encode_prompts(captions), codec.encode_prompts([self.null_prompt])
        return write(place, self._latents(clips, codec), rows, cond, null, made_from)

    def clips(self) -> list[tuple[Path, str]]:
        """The files with their captions, or an error that names what is missing."""
        files = sorted(Path(self.path).glob("*.mp4"))
        if not files:
            raise DataError(f"VideoFolder.path = {self.path!r}: there are no .mp4 files")
        if missing := [file.name for file in files if not file.with_suffix(".txt").is_file()]:
            raise DataError(
                f"{self.path}: {len(missing)} clips have no caption, such as {missing[0]} (same name, .txt)"
            )
        return [(file, file.with_suffix(".txt").read_text().strip()) for file in files]

    def _latents(self, clips: list[tuple[Path, str]], codec: Codec) -> Iterator[Latent]:
        for first in range(0, len(clips), self.shard):
            videos = [self.read(file) for file, _ in clips[first : first + self.shard]]
            yield codec.encode(torch.stack(videos))

    def read(self, file: Path) -> Tensor:
        """[frames, 3, height, width] in [0, 1]."""
        video = frames_of(file, self.frames)
        if len(video) < self.frames:
            raise DataError(f"{file} has {len(video)} frames: must have at least VideoFolder.frames = {self.frames}")
        return _fit(video, self.height, self.width)


def frames_of(file: Path, most: int | None = None) -> Tensor:
    """[n, 3, H, W] in [0, 1]: the frames of a video, or its first `most`; one, of an image."""
    import av

    try:
        with av.open(str(file)) as container:
            decoded = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), most)]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{file} is no video or image that can be read: {error}") from error
    if not decoded:
        raise DataError(f"{file} has no frames")
    return torch.stack([torch.from_numpy(frame) for frame in decoded]).permute(0, 3, 1, 2).float() / 255


def _fit(video: Tensor, height: int, width: int) -> Tensor:
    """Scale to cover height × width, keeping the aspect ratio, and cut about the centre."""
    h, w = video.shape[-2:]
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    video = F.interpolate(video, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[..., top : top + height, left : left + width]


def _stamp(file: Path) -> list[Any]:
    return [file.name, file.stat().st_size, file.with_suffix(".txt").read_text()]
