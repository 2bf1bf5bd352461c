"""Which of several sizes a clip is encoded in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache, partial
from typing import TypeAlias

from .clip import Clip
from .decode import Take, decode
from .format import DataError
from .length import counted
from .shown import Orientation, View

Size: TypeAlias = tuple[int, int, int]
"""Frames, height, width."""
LOOKING = 8
ALIKE = 2
"""Decimals of the share that is cut away, to which it is compared."""


def best(clip: tuple[int, int, int], sizes: Sequence[Size]) -> Size:
    """The size that cuts least of a clip away; of those that cut alike the largest that the clip fills, in frames and
    then in pixels, or where it fills none the one with the fewest frames. clip: its frames, height, width, as shown.
    """
    cut = [round(View.of(clip[1:], Orientation(), Fraction(1), size[1:]).cut, ALIKE) for size in sizes]
    alike = [size for size, share in zip(sizes, cut, strict=True) if share == min(cut)]
    filled = [size for size in alike if size[0] <= clip[0]]
    smooth = [size for size in filled if size[1] <= clip[1] and size[2] <= clip[2]] or filled
    return max(smooth, key=lambda size: (size[0], size[1] * size[2])) if smooth else min(alike)


def of_size(clips: Sequence[Clip], size: Size, sizes: Sequence[Size], fps: Fraction | None) -> list[Clip]:
    """The clips whose best size it is; those that cannot be read are of the first."""
    with ThreadPoolExecutor(LOOKING) as pool:
        found = [*pool.map(partial(_shape, fps=fps), clips)]
    return [
        clip for clip, shape in zip(clips, found, strict=True) if (best(shape, sizes) if shape else sizes[0]) == size
    ]


@lru_cache(maxsize=1 << 20)
def _shape(clip: Clip, fps: Fraction | None) -> tuple[int, int, int] | None:
    """Its frames, height and width, as shown; None of what cannot be read."""
    try:
        _, _, height, width = decode(clip.source(), clip.name, Take(1)).frames.shape
        return counted(clip.source(), clip.name, fps), height, width
    except DataError:
        return None
