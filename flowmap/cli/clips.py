"""What `flowmap data encode` is told of clips."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .command import positive
from .errors import UsageError
from .sample import size

if TYPE_CHECKING:
    from ..data import VideoFolder
    from ..data.shards import LatentShards
    from ..model import FlowMapSpec

    Work: TypeAlias = Callable[[], LatentShards | None]


def arguments(parser: ArgumentParser) -> None:
    told = (
        "several sizes in place of --size: each clip is encoded in the one that suits it best, a directory each in DIR"
    )
    parser.add_argument("--buckets", type=size, nargs="+", default=(), metavar="FxHxW", help=told)
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


def folders(options: Namespace) -> list[tuple[Path, VideoFolder]]:
    """What is to be encoded, and to where."""
    out = Path(options.out)
    if not options.buckets:
        return [(out, _folder(options, options.size))]
    if options.size is not None:
        raise UsageError("--buckets are sizes in place of --size: give one of both")
    sizes = [*dict.fromkeys(options.buckets)]
    return [(out / "x".join(map(str, one)), _folder(options, one, tuple(sizes))) for one in sizes]


def encode(options: Namespace, spec: FlowMapSpec, told: Callable[[Path, Work], None], **to: Any) -> None:
    """Encode all that is asked for; told: runs it, and says what came of it. Videos that are not read are named."""
    from ..data.clips import left
    from ..data.video_folder import NoClipsError

    if (others := left(Path(options.clips))) is not None:
        print(f"warning: not taken: {others}")
    for out, folder in folders(options):
        try:
            told(out, partial(folder.encode, spec, out, **to))
        except NoClipsError:
            print(f"{out}: no clip is of this size")


def _folder(
    options: Namespace, asked: tuple[int, int, int] | None, among: tuple[tuple[int, int, int], ...] = ()
) -> VideoFolder:
    from ..data import VideoFolder

    if options.stride is not None and options.windows == 1:
        raise UsageError("--stride is between samples of one clip: give --windows, how many of them there may be")
    frames, height, width = asked or (None, None, None)
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
        among=among,
    )
