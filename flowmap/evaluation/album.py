"""Clips for a page that plays them in step: each one picture, its frames in rows, and a list of them.

A browser cannot keep animated pictures or videos in step with each other; a script that draws frame k of all can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..atomic import write_bytes, write_json
from ..training.store.health import ALBUM
from .records import Point, labels

LARGEST = 320
"""Pixels of a frame's longer side."""
MOST = 100
"""Frames of a clip; of longer ones every second, third, ... is kept."""
RATE = 6.0
"""Frames a second, where nobody knows better."""
LOSSLESS = 64
"""Frames of at most so many pixels a side are kept exactly: they are shown enlarged."""


def write(shown: Mapping[Point, Tensor], prompts: Sequence[str], folder: Path, rate: float | None) -> None:
    """shown: [N, frames, 3, H, W] in [0, 1] of N `prompts`; a picture a clip, and `album.json` last."""
    names, clips = labels(shown), []
    frames, height, width = next(iter(shown.values())).shape[1], 0, 0
    every = math.ceil(frames / MOST)
    for point, videos in shown.items():
        files = []
        for k, video in enumerate(videos):
            small = smaller(video[::every].float().cpu())
            height, width = small.shape[-2:]
            stem = f"{names[point.key]}_{point.steps:02d}_{k}".replace(", ", "_").replace(" ", "_")
            files.append(f"{stem}.webp")
            write_bytes(folder / files[-1], _picture(small))
        one = {"model": names[point.key], "sampler": point.sampler, "steps": point.steps, "calls": point.calls}
        clips.append({**one, "files": files})
    kept = math.ceil(frames / every)
    told: dict[str, Any] = {"prompts": [*prompts], "rate": (rate or RATE) / every, "frames": kept}
    told |= {"columns": columns(kept), "height": height, "width": width, "clips": clips}
    write_json(folder / ALBUM, told)


def columns(frames: int) -> int:
    """Of the frames in a picture: it is about square, and every decoder takes it."""
    return math.ceil(math.sqrt(frames))


def smaller(frames: Tensor) -> Tensor:
    """[F, 3, H, W], at most LARGEST a side."""
    factor = LARGEST / max(frames.shape[-2:])
    if factor >= 1:
        return frames
    size = [max(1, round(factor * side)) for side in frames.shape[-2:]]
    return nnf.interpolate(frames, size=size, mode="area")


def _picture(frames: Tensor) -> bytes:
    from PIL import Image

    across = columns(len(frames))
    frames = torch.cat([frames, frames.new_zeros(-len(frames) % across, *frames.shape[1:])])
    rows = frames.unflatten(0, (-1, across)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    content = BytesIO()
    exact = max(frames.shape[-2:]) <= LOSSLESS
    picture = Image.fromarray((rows.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    picture.save(content, format="WEBP", quality=80, lossless=exact)
    return content.getvalue()
