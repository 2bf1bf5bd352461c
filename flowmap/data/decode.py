"""Frames of videos and images, as a player shows them: which ones, when, in what colours.

Whoever made a file is not trusted: sizes are bounded, and the decoder opens video files alone, not playlists that name
other files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice, repeat
from math import floor
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from attrs import define, field, frozen, validators
from torch import Tensor

from .format import DataError
from .shown import Orientation, View, as_floats

MOST_PIXELS = 1 << 26
"""Of a frame."""
IMAGES = ("image2", "png_pipe", "jpeg_pipe")
FORMATS = ",".join(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "gif", *IMAGES))
"""FFmpeg's names: by itself it goes by the content, and a playlist that is called .mp4 would open what it names."""
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
UNSAID, BT709 = (2, 3), 1
"""A frame's matrix, of AVColorSpace."""
HDR = (16, 18)
"""PQ and HLG, of AVColorTransferCharacteristic."""
EXIF_ORIENTATION = 274
Source: TypeAlias = str | BinaryIO


@frozen
class Take:
    """Which frames of a file: `count` (None: all) from number `first` on, counted at `fps` a second.

    Number k is the frame whose presentation time is nearest to k / fps seconds after the beginning, the earlier of two:
    so a slow file repeats frames, and one of a variable rate is sampled evenly. fps None: every frame, as they come.
    """

    count: int | None = None
    fps: Fraction | None = None
    first: int = field(default=0, validator=validators.ge(0))


@frozen(eq=False)
class Video:
    """frames: uint8 [n, 3, H, W]. rate: of the file, frames a second, where it has one. cut: the share of the picture
    that is cut away. remarks: what about it a player would not show as it is here.
    """

    frames: Tensor
    rate: float | None
    cut: float
    remarks: tuple[str, ...] = ()


def frames_of(file: Path, most: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """[n, 3, H, W] in [0, 1]: the frames of a video as it is shown, or its first `most`; one, of an image.

    size: as of `decode`.
    """
    return as_floats(decode(str(file), str(file), Take(most), size).frames).contiguous()


def decode(source: Source, name: str, take: Take, size: tuple[int, int] | None = None) -> Video:
    """The frames that `take` says, or as many of them as there are, but at least one.

    size: (height, width) that they are scaled to cover and cut to about the centre; None is the size at which they are
    shown. A file that cannot be read is a `DataError`.
    """
    with opened(source, name) as container:
        stream = container.streams.video[0]
        frames = _taken(container, stream, take)
        if (first := next(frames, None)) is None:
            raise DataError(f"{name} has no frames{f' from number {take.first} on' if take.first else ''}")
        view = View.of(_stored(first, name), _orientation(container, first, name), _ratio(container, stream), size)
        scaled = _Scaled(name, view)
        if take.count is None:
            stored = torch.stack([scaled(frame) for frame in chain([first], frames)])
        else:  # no second copy; and numpy asks for large pages
            stored, n = torch.from_numpy(np.empty((take.count, *view.scaled, 3), np.uint8)), 0
            for n, frame in enumerate(chain([first], frames), 1):
                stored[n - 1] = scaled(frame)
            stored = stored[:n]
        rate = stream.average_rate
        return Video(view.finish(stored), None if rate is None else float(rate), view.cut, _remarks(first))


@contextmanager
def opened(source: Source, name: str) -> Iterator[Any]:
    """The container, with a picture in it; what is wrong with it is a `DataError`."""
    import av

    if not isinstance(source, str):
        source.seek(0)
    try:
        with av.open(source, options=OPTIONS) as container:
            if not container.streams.video:
                raise DataError(f"{name} is no video or image that can be read: there is no picture in it")
            yield container
    except av.FFmpegError as error:  # its text has the file's name, which stands before it
        raise DataError(f"{name} is no video or image that can be read: {error.strerror}") from error


# ---------------------------------------------------------------- which frames
def _taken(container: Any, stream: Any, take: Take) -> Iterator[Any]:
    last = None if take.count is None else take.first + take.count
    if take.fps is None:
        return islice(container.decode(stream), take.first, last)
    return nearest(_timed(container, stream, take.first / take.fps), take.fps, take.first, last)


def nearest(
    timed: Iterable[tuple[Fraction, Fraction, Any]], fps: Fraction, first: int = 0, last: int | None = None
) -> Iterator[Any]:
    """Of frames with (time, duration): for k = first .. last - 1 the one nearest to k / fps, the earlier of two.

    The last is shown for its duration, and counts for the half of it, as those before it do.
    """
    k, held = first, None
    before = beyond = Fraction(0)
    for time, duration, frame in timed:
        if held is not None:
            nearer = floor((before + time) / 2 * fps) + 1
            yield from repeat(held, max(0, (nearer if last is None else min(nearer, last)) - k))
            k = max(k, nearer)
        if last is not None and k >= last:
            return
        held, before, beyond = frame, time, time + duration / 2
    if held is not None:
        nearer = floor(beyond * fps) + 1
        yield from repeat(held, max(0, (nearer if last is None else min(nearer, last)) - k))


def _timed(container: Any, stream: Any, start: Fraction) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """(time, duration, frame), by time from the beginning, from the last key frame before `start` seconds on."""
    origin = stream.start_time or 0
    if start:
        container.seek(origin + int(start / stream.time_base), stream=stream, backward=True)
        times = _times(container, stream, origin)
        if (found := next(times, None)) is not None and found[0] <= start:
            yield found
            yield from times
            return
        container.seek(origin, stream=stream, backward=True)  # the file's index is wrong: from the beginning
    yield from _times(container, stream, origin)


def _times(container: Any, stream: Any, origin: int) -> Iterator[tuple[Fraction, Fraction, Any]]:
    usual = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
    for number, frame in enumerate(container.decode(stream)):
        base = frame.time_base or stream.time_base
        time = number * usual if frame.pts is None else (frame.pts * base) - origin * stream.time_base
        yield time, (frame.duration * base if frame.duration else usual), frame


# ---------------------------------------------------------------- what a picture says of itself
def _stored(frame: Any, name: str) -> tuple[int, int]:
    if frame.width * frame.height > MOST_PIXELS:
        raise DataError(f"{name} is {frame.width}x{frame.height}: must have at most {MOST_PIXELS} pixels a frame")
    return frame.height, frame.width


def _orientation(container: Any, frame: Any, name: str) -> Orientation:
    if container.format.name in IMAGES:
        from PIL import Image

        with Image.open(container.name) as image:
            return Orientation.of_exif(image.getexif().get(EXIF_ORIENTATION, 1))
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV lists no side data where there is a kind that it does not know; it still has the angle
        quarter = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)][round(frame.rotation / 90) % 4]
        a, b, c, d = (n << 16 for n in quarter)
        return Orientation.of_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
    if matrix is None:
        return Orientation()
    try:
        return Orientation.of_matrix(torch.frombuffer(bytearray(matrix), dtype=torch.int32).tolist())
    except ValueError as error:
        raise DataError(f"{name}: {error}: only quarter turns are taken, turn it by the rest first") from None


def _ratio(container: Any, stream: Any) -> Fraction:
    """Width over height of a pixel; of an image it is the printer's, and no viewer looks at it."""
    return Fraction(1) if container.format.name in IMAGES else Fraction(stream.sample_aspect_ratio or 1)


def _remarks(frame: Any) -> tuple[str, ...]:
    said = {"interlaced": frame.interlaced_frame, "HDR": frame.color_trc in HDR}
    return tuple(name for name, holds in said.items() if holds)


@define(eq=False)
class _Scaled:
    """Frames of the file `name` in RGB, uint8 [h, w, 3], of the size `view.scaled`; one that comes twice is made once.

    Matrix and range are the file's. Where it says no matrix, players guess, and so does this: BT.709 for pictures of a
    width from 1280 on or a height above 576, BT.601 for smaller ones.
    """

    name: str
    view: View
    _reformatter: Any = field(init=False)
    _last: tuple[Any, Tensor] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> Tensor:
        if self._last is None or self._last[0] is not frame:
            height, width = _stored(frame, self.name)
            guessed = BT709 if frame.colorspace in UNSAID and (width >= 1280 or height > 576) else None
            made = self._reformatter.reformat(frame, format="rgb24", src_colorspace=guessed, threads=1)
            self._last = frame, self.view.scale(torch.from_numpy(made.to_ndarray()))
        return self._last[1]
