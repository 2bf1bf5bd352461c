"""What `flowmap data encode` is told of clips."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .command import positive
from .errors import UsageError

if TYPE_CHECKING:
    from ..data import VideoFolder


def arguments(parser: ArgumentParser) -> None:
    told = "frames a second that are taken of a clip; the backbone's by default; keep: all, at whatever rate they come"
    parser.add_argument("--fps", type=rate, metavar="RATE", help=told)
    told = "samples of one clip, as many as it is long enough for, up to N; 1 by default"
    parser.add_argument("--windows", type=positive, default=1, metavar="N", help=told)
    told = "frames from the beginning of one sample of a clip to that of the next; by default they follow each other"
    parser.add_argument("--stride", type=positive, metavar="N", help=told)
    parser.add_argument("--caption", metavar="TEXT", help="of clips that have none")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="before every caption")
    told = "leave out clips that cannot be read, are too short or have no caption, and name them"
    parser.add_argument("--skip-bad", action="store_true", help=told)


def rate(text: str) -> float | Literal["keep"]:
    if text == "keep":
        return "keep"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1000.0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0 and at most 1000, or keep")
    return value


def page(text: str) -> Path:
    file = Path(text)
    if file.suffix.lower() not in (".html", ".htm") or not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: must end in .html, in a directory that is there")
    return file


def folder(options: Namespace, size: tuple[int, int, int] | None) -> VideoFolder:
    from ..data import VideoFolder

    if options.stride is not None and options.windows == 1:
        raise UsageError("--stride is between samples of one clip: give --windows, how many of them there may be")
    frames, height, width = size or (None, None, None)
    return VideoFolder(
        options.clips,
        frames,
        height,
        width,
        options.null_prompt,
        shard=options.shard_size,
        bad="skip" if options.skip_bad else "raise",
        fps=options.fps,
        windows=options.windows,
        stride=options.stride,
        caption=options.caption,
        prefix=options.prefix,
    )
