"""Samples to look at: a grid of strips, and short videos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from .album import smaller
from .records import Point, labels

PROMPTS, STRIP = 4, 3
WIDTH, LEFT, TOP, LINE, GAP = 1.8, 0.7, 0.3, 0.3, 0.06
"""Of the grid, in inches: a cell, the captions, the distance between cells."""
LEAST, MOST = 384, 2048
"""Small videos are enlarged by a whole factor: to about LEAST pixels on the short side, MOST on the long one."""
LETTERS, BETWEEN = 16, 4
"""Pixels of a line's height, and between columns."""
EDGE = 0.3
"""The grey between two videos."""
FPS, SECONDS = 6, 3.0

Picture = NDArray[np.uint8]


def write(shown: Mapping[Point, Tensor], prompts: Sequence[str], out: Path) -> None:
    """`grid.png`, and for the teacher and the student at every number of steps a video of all `shown` prompts.

    What the re-noising sampler makes is shown of a student that has no other.
    """
    names = labels(shown)
    rows = {
        label.partition(",")[0]: {p.steps: videos for p, videos in shown.items() if p.key == key}
        for key, label in names.items()
        if key != ("student", "consistency") or ("student", "flow_map") not in names
    }
    write_grid(rows, prompts, out / "grid.png")
    for label, by_steps in rows.items():
        for steps, videos in by_steps.items():
            write_video(tile(videos), out / f"{label}_{steps:02d}_steps.mp4")


def tile(videos: Tensor, columns: int | None = None) -> Tensor:
    """[N, F, 3, H, W] -> one video [F, 3, rows · (H + 1), columns · (W + 1)], about as many rows as columns."""
    columns = columns or math.ceil(math.sqrt(len(videos)))
    missing = -len(videos) % columns
    edged = nnf.pad(videos, (0, 1, 0, 1), value=EDGE)
    filled = torch.cat([edged, edged.new_full((missing, *edged.shape[1:]), EDGE)])
    whole = filled.unflatten(0, (-1, columns)).permute(2, 3, 0, 4, 1, 5)
    return whole.flatten(4, 5).flatten(2, 3)


def write_video(frames: Tensor, path: Path, fps: float | None = None, *, plain: bool = False) -> None:
    """[F, 3, H, W] in [0, 1] as .mp4 (H.264), .gif, or .png (frames side by side), enlarged so that it can be seen, and
    shown again and again for some seconds. plain: as it is, once. fps: frames a second, FPS by default."""
    import imageio.v3 as iio

    path.parent.mkdir(parents=True, exist_ok=True)
    factor = 1 if plain else None
    if path.suffix == ".png":
        iio.imwrite(path, _pixels(torch.cat(list(frames), dim=2), factor)[0])
        return
    _write_pictures(_pixels(frames, factor), path, fps or FPS, SECONDS if not plain else 0.0)


def _write_pictures(pictures: Picture, path: Path, fps: float, seconds: float) -> None:
    """[n, height, width, 3] as .gif, which goes on for ever, or .mp4, at least so long."""
    import imageio.v3 as iio

    if path.suffix == ".gif":
        iio.imwrite(path, pictures, duration=1000 / fps, loop=0)
        return
    _write_mp4(pictures, path, fps, times=max(1, math.ceil(seconds * fps / len(pictures))))


def _write_mp4(pictures: Picture, path: Path, fps: float, *, times: int) -> None:
    """Again and again, encoded once. H.264 halves the colours: an odd row or column is cut."""
    import av

    if len(pictures) == 1:  # a key frame may not follow itself
        pictures, times = np.concatenate([pictures] * times), 1
    height, width = (side // 2 * 2 for side in pictures.shape[1:3])
    with av.open(str(path), "w") as file:
        rate = Fraction(fps).limit_denominator(1001)
        stream = file.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "16", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        coded = []
        for picture in pictures[:, :height, :width]:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            coded += stream.encode(frame)
        coded += stream.encode()
        stamps = [(packet.pts, packet.dts, packet.time_base) for packet in coded]
        for again in range(times):
            for packet, (pts, dts, base) in zip(coded, stamps, strict=True):
                later = round(again * len(pictures) / rate / base)
                packet.time_base, packet.pts, packet.dts = base, pts + later, dts + later
                file.mux(packet)


def write_labelled(videos: Mapping[Any, Tensor], prompts: Sequence[str], path: Path, fps: float | None = None) -> None:
    """videos: [N, F, 3, H, W] by the number of steps, or what is said of several. A row a prompt, which stands above
    it, a column a number of steps, every pixel as it is, or enlarged by a whole factor. In a .png the frames are side
    by side in a cell."""
    n, frames, _, height, width = next(iter(videos.values())).shape
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        factor = _factor(height, width, largest=max(n * height, len(videos) * frames * width))
        side_by_side = [[_pixels(torch.cat([*video], dim=2), factor)[0] for video in made] for made in videos.values()]
        _page([*videos], side_by_side, prompts).save(path)
        return
    factor = _factor(height, width, largest=max(n * height, len(videos) * width))
    shown = [[_pixels(video, factor) for video in made] for made in videos.values()]
    pages = [_page([*videos], [[cell[f] for cell in column] for column in shown], prompts) for f in range(frames)]
    _write_pictures(np.stack([np.asarray(page) for page in pages]), path, fps or FPS, SECONDS)


def _page(steps: Sequence[Any], cells: Sequence[Sequence[Picture]], prompts: Sequence[str]) -> Any:
    """A picture of all cells, by column and row, with their labels."""
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(findfont("DejaVu Sans"), LETTERS)
    high, wide, _ = cells[0][0].shape
    line, row = 2 * LETTERS, 2 * LETTERS + high
    page = Image.new("RGB", (len(cells) * (wide + BETWEEN) - BETWEEN, line + row * len(prompts)), "white")
    draw = ImageDraw.Draw(page)
    for i, (count, column) in enumerate(zip(steps, cells, strict=True)):
        x = i * (wide + BETWEEN)
        draw.text((x + wide / 2, line / 2), f"{count} step{'s' * (str(count) != '1')}", "black", font, anchor="mm")
        for k, picture in enumerate(column):
            page.paste(Image.fromarray(picture), (x, line + k * row + line))
    for k, prompt in enumerate(prompts):
        shown = prompt
        while draw.textlength(shown, font) > page.width - LETTERS:
            shown = shown.rstrip("…")[:-1] + "…"
        draw.text((LETTERS / 2, line + k * row + line / 2), shown, "black", font, anchor="lm")
    return page


def write_beside(shown: Mapping[Point, Tensor], prompts: Sequence[str], path: Path, fps: float | None = None) -> None:
    """Every prompt's videos, a row a model, at the numbers of steps that all have: first, middle and last frame in a
    .png, all frames in an .mp4."""
    names = labels(shown)
    made = {label: {p.steps: videos for p, videos in shown.items() if p.key == key} for key, label in names.items()}
    steps = sorted(set.intersection(*(set(of) for of in made.values())))
    part = _strip if path.suffix == ".png" else _small
    rows = {n: torch.stack([part(made[label][n]) for label in made], 1).flatten(0, 1) for n in steps}
    write_labelled(rows, [f"{label}: {prompt}" for prompt in prompts for label in made], path, fps)


def _strip(videos: Tensor) -> Tensor:
    """[N, F, 3, H, W] -> at most STRIP of the frames, of a size for looking at them."""
    count = videos.shape[1]
    return _small(videos[:, sorted({i * (count - 1) // (STRIP - 1) for i in range(STRIP)})])


def _small(videos: Tensor) -> Tensor:
    """[N, F, 3, H, W], of a size for looking at them."""
    return torch.stack([smaller(video) for video in videos.float()])


def write_grid(rows: Mapping[str, Mapping[int, Tensor]], prompts: Sequence[str], path: Path) -> None:
    """Columns are numbers of steps; for a few prompts a row a model; in each cell first, middle and last frame."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = sorted({n for by_steps in rows.values() for n in by_steps})
    count = min(PROMPTS, len(prompts))
    video = next(iter(rows[next(iter(rows))].values()))[0]
    cell = WIDTH, WIDTH / STRIP * video.shape[-2] / video.shape[-1]
    width = LEFT + len(steps) * (cell[0] + GAP)
    height = TOP + count * (LINE + len(rows) * (cell[1] + GAP))
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for column, n in enumerate(steps):
        x = LEFT + column * (cell[0] + GAP) + cell[0] / 2
        figure.text(x / width, 1 - TOP / 2 / height, f"{n} step{'s' * (n > 1)}", fontsize=9, ha="center", va="center")
    y = TOP
    for index in (i * len(prompts) // count for i in range(count)):
        figure.text(LEFT / width, 1 - (y + LINE - 0.07) / height, prompts[index], fontsize=9, style="italic")
        y += LINE
        for label, by_steps in rows.items():
            middle = 1 - (y + cell[1] / 2) / height
            figure.text((LEFT - 0.06) / width, middle, label, fontsize=9, ha="right", va="center")
            for column, n in enumerate(steps):
                if n in by_steps:
                    x, bottom = LEFT + column * (cell[0] + GAP), height - y - cell[1]
                    place = (x / width, bottom / height, cell[0] / width, cell[1] / height)
                    _cell(figure.add_axes(place), by_steps[n][index])
            y += cell[1] + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _cell(axes: Any, video: Tensor) -> None:
    axes.set_axis_off()
    frames = [video[i * (len(video) - 1) // (STRIP - 1)] for i in range(STRIP)]
    edge = torch.full_like(frames[0][..., :1], 2 * EDGE)
    strip = torch.cat([part for frame in frames for part in (frame, edge)][:-1], dim=2)
    axes.imshow(strip.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest", aspect="auto")


def _factor(height: int, width: int, largest: int) -> int:
    return max(1, min(round(LEAST / min(height, width)), MOST // largest))


def _pixels(frames: Tensor, factor: int | None = None) -> Picture:
    """[..., 3, H, W] in [0, 1] -> uint8 [..., H, W, 3], enlarged."""
    frames = frames if frames.ndim == 4 else frames[None]
    height, width = frames.shape[-2:]
    factor = factor or _factor(height, width, max(height, width))
    large = frames.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    pixels: Picture = (large.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels
