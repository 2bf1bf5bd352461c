"""Real files as cameras, phones and editors write them, of a picture that is known."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]


def scene(n: int = 9, height: int = 64, width: int = 32) -> Pictures:
    """[n, h, w, 3], smooth, without any symmetry, in colours that two matrices give differently."""
    y, x = np.mgrid[:height, :width]
    red = 120 + 90 * np.sin(3.2 * x / width + 0.3)
    green = 120 + 90 * np.cos(5.3 * y / height)
    blue = 96 * x / width + 60 * y / height
    first = np.stack([red, green, blue], -1)
    return np.stack([first + 3 * k for k in range(n)]).clip(0, 255).astype(np.uint8)


def film(
    path: Path,
    pictures: Pictures,
    *,
    rate: int | Fraction = 16,
    times: Sequence[int] | None = None,
    matrix: int | None = None,
    full: bool | None = None,
    ratio: Fraction | None = None,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    **tags: Any,
) -> Path:
    """Without losses but those of halved colours. times: of the frames, in milliseconds. matrix: 1 (BT.709) or 5."""
    codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
    own = {"lossless": "1"} if path.suffix == ".webm" else {"crf": "0", "preset": "ultrafast", "bf": "0"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options={**own, **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], pix_fmt
        context: Any = stream.codec_context
        if times is not None:
            context.time_base = Fraction(1, 1000)
        for name, value in {"colorspace": matrix, "sample_aspect_ratio": ratio, **tags}.items():
            if value is not None:
                setattr(context, name, value)
        if full is not None:
            context.color_range = 2 if full else 1
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=2 if full else 1)
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a, b, c, d of the display matrix into the track header of an .mp4 or .mov, as a phone does."""
    data, (a, b, c, d) = bytearray(path.read_bytes()), (n << 16 for n in matrix)
    at = data.index(b"tkhd") + 4
    at += 4 + (20 if data[at] == 0 else 32) + 16
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
