"""What generated history does to the chunks after it: intensity drift, and the quality of single frames.

A causal student continues its own output, so its errors add up from chunk to chunk (exposure bias, arXiv:2506.08009).
Both measurements compare with what real clips keep exactly: a digit moves by whole pixels inside the canvas, so every
frame has the ink of the first one, and shows the same glyph.

Every measurement takes (videos, prompts, edges) and gives a value per chunk; videos are [N, F, 3, H, W] in [0, 1] and
chunk k holds the frames edges[k] … edges[k+1] − 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from statistics import fmean
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as nnf
from attrs import field, frozen
from torch import Tensor

from flowmap import validators
from flowmap.evaluation import Samples
from flowmap.evaluation.distances import by_prompt, energy_distance

from . import measure
from .classifier import Moments
from .videos import PLAIN, Prompt, Style, prompts_with, render_all

EDGES = (0, 1, 3, 5, 7, 9)
"""A latent frame a chunk: the tiny VAE makes latent frame 0 of frame 0, latent frame k of frames 2k−1 and 2k."""
WINDOW, CELLS = 24, 8
"""A window that holds any glyph wherever its centroid is, and the cells a side that it is averaged to."""
FAINT = 1.0
"""Ink, in white pixels, that a clip's first frame counts as having at least."""
REFERENCE_CLIPS, REFERENCE_SEED = 1024, 20250603

PerChunk: TypeAlias = Callable[[Tensor, Sequence[Prompt], Sequence[int]], list[float]]


def signed_drift(videos: Tensor, prompts: Sequence[Prompt], edges: Sequence[int]) -> list[float]:
    """Mean of ink / ink of the clip's first frame − 1: above zero where digits swell, below where they fade.

    The prompts do not matter.
    """
    return [float(part.mean()) for part in _parts(_relative_ink(videos), edges)]


def absolute_drift(videos: Tensor, prompts: Sequence[Prompt], edges: Sequence[int]) -> list[float]:
    """Mean of | ink / ink of the clip's first frame − 1 |, in which clips that swell and clips that fade add up."""
    return [float(part.abs().mean()) for part in _parts(_relative_ink(videos), edges)]


def frame_distance(
    videos: Tensor, prompts: Sequence[Prompt], edges: Sequence[int], style: Style = PLAIN
) -> list[float]:
    """The squared Fréchet distance (arXiv:1706.08500) of the chunk's glyphs to real ones of the same prompts.

    Features are `glyphs`. A frame is judged on its own, wherever the digit is: motion and history do not enter. The
    distance grows as clips get fewer; compare at equal numbers, and with real clips.
    """
    real = _real(tuple(sorted({prompt.text for prompt in prompts})), style)
    parts = _parts(glyphs(videos), edges)
    return [measure.gaussian_frechet(measure.moments(part.flatten(0, 1)), real) for part in parts]


def glyph_distance(
    videos: Tensor, prompts: Sequence[Prompt], edges: Sequence[int], style: Style = PLAIN
) -> list[float]:
    """The energy distance of the last glyphs of a chunk to real ones of the same prompt, mean over prompts.

    As `frame_distance`, and right on average at every number of clips, two of a prompt at least: 0 for real ones.
    """
    texts = [prompt.text for prompt in prompts]
    there, others = _real_glyphs(tuple(sorted({*texts})), style)
    mine, theirs = by_prompt(texts), by_prompt(others)
    if not mine:
        raise ValueError(f"prompts: {len(texts)} clips of as many prompts; must be two of a prompt at least")
    parts = [part[:, -1] for part in _parts(glyphs(videos), edges)]
    return [fmean(energy_distance(part[mine[t]], there[theirs[t]]) for t in mine) for part in parts]


def glyphs(videos: Tensor) -> Tensor:
    """The window around each frame's centroid, averaged to 8×8 cells of 3×3 pixels, [N, F, 64] in float64.

    A classifier's features see the clip as a whole; these see strokes, blur, paleness and noise of one frame. The
    window follows the centroid by parts of a pixel, so a wrong motion alone changes nothing, and cells of about a
    stroke's width keep the covariance small enough for some hundred frames.
    """
    grey = videos.double().mean(dim=2)
    height, width = grey.shape[-2:]
    x, y = measure.centroids(videos).double().unbind(dim=-1)
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=videos.device) - (WINDOW - 1) / 2
    columns = (2 * (x[..., None] + offsets) + 1) / width - 1
    rows = (2 * (y[..., None] + offsets) + 1) / height - 1
    size = (*x.shape, WINDOW, WINDOW)
    grid = torch.stack([columns[..., None, :].expand(size), rows[..., :, None].expand(size)], dim=-1)
    seen = nnf.grid_sample(grey.flatten(0, 1)[:, None], grid.flatten(0, 1), align_corners=False)
    return nnf.avg_pool2d(seen, WINDOW // CELLS).flatten(1).unflatten(0, x.shape)


@frozen
class LastChunk:
    """A measurement's value for the last chunk, as a `Metric` of a quality curve takes it."""

    measure: PerChunk = field(validator=validators.is_callable())
    edges: tuple[int, ...] = EDGES

    def __call__(self, samples: Samples) -> float:
        return self.measure(samples.videos, prompts_with(samples.prompts), self.edges)[-1]


def check(edges: Sequence[int], frames: int) -> None:
    """Chunks follow one another and cover the clip."""
    if not edges or edges[0] != 0 or edges[-1] != frames or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"edges = {tuple(edges)}: must increase from 0 to the clip's {frames} frames")


def _parts(values: Tensor, edges: Sequence[int]) -> list[Tensor]:
    check(edges, values.shape[1])
    return [values[:, a:b] for a, b in pairwise(edges)]


def _relative_ink(videos: Tensor) -> Tensor:
    """Ink of each frame over that of the first, minus one, [N, F] in float64."""
    ink = videos.double().mean(dim=2).sum(dim=(2, 3))
    return ink / ink[:, :1].clamp(min=FAINT) - 1


@cache
def _real(texts: tuple[str, ...], style: Style) -> Moments:
    return measure.moments(_real_glyphs(texts, style)[0])


@cache
def _real_glyphs(texts: tuple[str, ...], style: Style) -> tuple[Tensor, list[str]]:
    """Of real clips, the prompts equally often, and their prompts; one frame a clip, for all show the same."""
    asked = [texts[i % len(texts)] for i in range(REFERENCE_CLIPS)]
    rng = np.random.default_rng(REFERENCE_SEED)
    return glyphs(render_all(prompts_with(asked), rng, images="held_out", style=style))[:, 0], asked
