"""Samples to look at: a grid of strips, and short videos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .records import Point

PROMPTS, STRIP = 4, 3
LEAST = 384
"""Small videos are enlarged by a whole factor until a side of the picture has about this many pixels."""
FPS, SECONDS = 6, 3.0

Picture = NDArray[np.uint8]


def write(shown: Mapping[Point, Tensor], prompts: Sequence[str], out: Path) -> None:
    """`grid.png`, and for the teacher and the student at every number of steps a video of all `shown` prompts."""
    rows = {
        label: {p.steps: videos for p, videos in shown.items() if p.sampler == sampler}
        for label, sampler in (("teacher", "euler"), ("student", "flow_map"))
    }
    write_grid(rows, prompts, out / "grid.png")
    for label, by_steps in rows.items():
        for steps, videos in by_steps.items():
            write_video(tile(videos), out / f"{label}_{steps:02d}_steps.mp4")


def tile(videos: Tensor, columns: int | None = None) -> Tensor:
    """[N, F, 3, H, W] -> one video [F, 3, rows · H, columns · W], about as many rows as columns."""
    columns = columns or math.ceil(math.sqrt(len(videos)))
    missing = -len(videos) % columns
    filled = torch.cat([videos, videos.new_zeros(missing, *videos.shape[1:])])
    whole = filled.unflatten(0, (-1, columns)).permute(2, 3, 0, 4, 1, 5)
    return whole.flatten(4, 5).flatten(2, 3)


def write_video(frames: Tensor, path: Path) -> None:
    """[F, 3, H, W] in [0, 1] as .mp4 (H.264), .gif, or .png (frames side by side), enlarged so that it can be seen."""
    import imageio.v3 as iio

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        iio.imwrite(path, _pixels(torch.cat(list(frames), dim=2))[0])
        return
    pictures = _pixels(frames)
    if path.suffix == ".gif":
        iio.imwrite(path, pictures, duration=1000 / FPS, loop=0)
        return
    repeated = np.concatenate([pictures] * math.ceil(SECONDS * FPS / len(pictures)))
    iio.imwrite(path, _even(repeated), plugin="pyav", codec="libx264", fps=FPS)


def write_grid(rows: Mapping[str, Mapping[int, Tensor]], prompts: Sequence[str], path: Path) -> None:
    """Columns are numbers of steps; for a few prompts a row a model; in each cell first, middle and last frame."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = sorted({n for by_steps in rows.values() for n in by_steps})
    chosen = [i * len(prompts) // min(PROMPTS, len(prompts)) for i in range(min(PROMPTS, len(prompts)))]
    figure = Figure(figsize=(0.9 + 1.9 * len(steps), 0.3 + len(chosen) * (0.25 + 0.65 * len(rows))))
    FigureCanvasAgg(figure)
    blocks = figure.subfigures(len(chosen), 1)
    for number, (block, index) in enumerate(zip(np.atleast_1d(blocks), chosen, strict=True)):
        block.suptitle(f"“{prompts[index]}”", fontsize=9, x=0.06, ha="left", y=0.99)
        axes = block.subplots(len(rows), len(steps), squeeze=False)
        block.subplots_adjust(left=0.06, right=0.995, top=0.80 if number else 0.74, bottom=0.02, wspace=0.04, hspace=0.06)
        for line, (label, by_steps) in zip(axes, rows.items(), strict=True):
            line[0].set_ylabel(label, fontsize=9)
            for cell, n in zip(line, steps, strict=True):
                _cell(cell, by_steps[n][index] if n in by_steps else None)
        if number == 0:
            for cell, n in zip(axes[0], steps, strict=True):
                cell.set_title(f"{n} step{'s' * (n > 1)}", fontsize=8, pad=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _cell(axes: Any, video: Tensor | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if video is None:
        axes.set_frame_on(False)
        return
    frames = [video[i * (len(video) - 1) // (STRIP - 1)] for i in range(STRIP)]
    edge = torch.full_like(frames[0][..., :1], 0.6)
    strip = torch.cat([part for frame in frames for part in (frame, edge)][:-1], dim=2)
    axes.imshow(strip.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest", aspect="equal")


def _pixels(frames: Tensor) -> Picture:
    """[..., 3, H, W] in [0, 1] -> uint8 [..., H, W, 3], enlarged."""
    frames = frames if frames.ndim == 4 else frames[None]
    factor = max(1, round(LEAST / min(frames.shape[-2:])))
    large = frames.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    pixels: Picture = (large.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


def _even(pictures: Picture) -> Picture:
    """H.264 halves the colours: an odd row or column is cut."""
    return pictures[:, : pictures.shape[1] // 2 * 2, : pictures.shape[2] // 2 * 2]
