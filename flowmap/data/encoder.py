"""Samples of clips: decoded, scaled, encoded, with their texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod

import torch
from attrs import evolve, frozen
from torch import Tensor

from .._types import Cond, concat
from ..doing import tell
from ..model import Codec, conditions_of_images, tokens_cut
from .clip import Clip
from .decode import Video
from .format import BadSamplesError, DataError, Origin
from .remarks import CUT
from .shown import as_floats
from .writer import Made, stored

ENCODING = "encoding"
PIXELS = 1 << 26
"""In one call of the encoder: two clips of Wan's size."""


@frozen
class Encoder:
    """Makes samples of windows of clips, (clip, first frame); the next are decoded while the ones before are encoded.

    read: a window of `size` (frames, height, width), or a `DataError`. skip: leave out what cannot be read.
    """

    windows: Sequence[tuple[Clip, int]]
    read: Callable[[Clip, int], Video]
    size: tuple[int, int, int]
    null_prompt: str
    skip: bool
    codec: Codec
    device: torch.device
    dtype: torch.dtype

    def null(self) -> Cond:
        return self.codec.encode_prompts([self.null_prompt])

    def samples(self, first: int, last: int) -> Made:
        windows = self.windows[first:last]
        most = max(1, PIXELS // prod(self.size))
        groups = [windows[i : i + most] for i in range(0, len(windows), most)]
        prompts: list[str] = []
        origins: list[Origin] = []
        bad: list[tuple[str, str]] = []
        x: list[Tensor] = []
        own: list[Cond] = []
        through = 0
        tell(ENCODING, 0, len(windows))
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._read, groups[0])
            for k in range(len(groups)):
                videos, wrong = coming.result()
                if k + 1 < len(groups):
                    coming = pool.submit(self._read, groups[k + 1])
                bad += wrong
                prompts += [clip.caption or "" for clip, _, _ in videos]
                origins += [Origin(clip.key, at, v.rate, v.cut, v.remarks) for clip, at, v in videos]
                if videos and (not bad or self.skip):
                    together = as_floats(torch.stack([video.frames for _, _, video in videos]).to(self.device))
                    x.append(self.codec.encode(together).cpu())
                    own.append(conditions_of_images(self.codec, together[:, 0], self.size[0]))
                through += len(groups[k])
                tell(ENCODING, through, len(windows))
        if bad and not self.skip:
            raise BadSamplesError(bad)
        if not prompts:
            return Made(torch.empty(0), (), {}, bad)
        distinct = [*dict.fromkeys(prompts)]
        texts = self.codec.encode_prompts(distinct)
        long = {prompt for prompt, cut in zip(distinct, tokens_cut(self.codec, distinct), strict=True) if cut}
        origins = [
            evolve(one, remarks=(*one.remarks, CUT)) if prompt in long else one
            for one, prompt in zip(origins, prompts, strict=True)
        ]
        made = Made(torch.cat(x), prompts, texts, bad, concat(*own), origins)
        return stored(made, torch.float32, self.dtype)

    def _read(self, group: Sequence[tuple[Clip, int]]) -> tuple[list[tuple[Clip, int, Video]], list[tuple[str, str]]]:
        """The videos that can be read, and of the others their names, and why not."""
        videos: list[tuple[Clip, int, Video]] = []
        wrong: list[tuple[str, str]] = []
        for clip, first in group:
            try:
                videos.append((clip, first, self.read(clip, first)))
            except DataError as error:
                wrong.append((clip.key, str(error)))
        return videos, wrong
