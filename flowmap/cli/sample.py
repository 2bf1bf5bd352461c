"""flowmap sample: make videos with a student."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .command import Command, positive, whole
from .errors import UsageError
from .threads import wait_passively

if TYPE_CHECKING:
    import torch

    from ..model import FlowMap


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help="the directory that distill wrote, or an export of it")
    parser.add_argument("--prompt", action="append", required=True, help="may be given several times: a row each")
    parser.add_argument("--steps", type=positive, nargs="+", default=[4], metavar="N", help="several: a column each")
    parser.add_argument("--seed", type=whole, default=0, metavar="N")
    parser.add_argument("--size", type=size, metavar="FxHxW", help="frames, height, width; as in training by default")
    parser.add_argument(
        "--context", type=context, metavar="FILE", help="an image or a video to go on from, of the video's size"
    )
    parser.add_argument("--out", type=video, default="sample.mp4", metavar="FILE", help=".mp4, .gif or .png")


def run(options: Namespace) -> None:
    path = Path(options.student)
    if not path.is_dir():
        raise UsageError(f"student {options.student!r}: there is no such directory; `flowmap distill` makes one")
    if options.context is not None and not Path(options.context).is_file():
        raise UsageError(f"context {options.context!r}: there is no such file")
    wait_passively(options.console)
    from ..data.videos import frames_of
    from ..evaluation.sampling import grid_of_samples
    from ..plugins import backbone

    context = None if options.context is None else frames_of(Path(options.context))
    asked = options.prompt, options.steps, options.seed, options.size, options.out
    path, u, device = _student(path)
    try:
        grid_of_samples(backbone(str(path)), path, *asked, context, u, device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(options.out)
    if len(options.steps) > 1:
        print(f"columns, from the left: {', '.join(map(str, options.steps))} steps")
    for number, prompt in enumerate(options.prompt if len(options.prompt) > 1 else (), 1):
        print(f"row {number}: {prompt}")


def _student(path: Path) -> tuple[Path, FlowMap | None, torch.device | None]:
    """The student's directory; for an export, that of the student it was made of, the export, and where that runs."""
    import torch

    from ..export.api import export, is_export
    from ..export.manifest import Manifest

    if not is_export(path):
        return path, None, None
    manifest = Manifest.read(path)
    source = manifest.source
    if source is None or not Path(source).is_dir():
        raise UsageError(
            f"{path}: an export makes latents alone; the student that it was made of, with text encoder and VAE, was"
            f" at {source} and is not there"
        )
    return Path(source), export.flow_map(path), torch.device(manifest.target.device)


def size(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: must be frames x height x width, such as 9x32x32")
    frames, height, width = map(int, parts)
    return frames, height, width


def context(text: str) -> str:
    if not text.lower().endswith((".png", ".jpg", ".jpeg", ".mp4", ".gif")):
        raise argparse.ArgumentTypeError(f"{text!r}: must end in .png, .jpg, .mp4 or .gif")
    return text


def video(text: str) -> str:
    if not text.endswith((".mp4", ".gif", ".png")):
        raise argparse.ArgumentTypeError(f"{text!r}: must end in .mp4, .gif or .png")
    return text


COMMAND = Command(
    "sample",
    "make videos with a student",
    'flowmap sample runs/quickstart/student --prompt "a seven moving up quickly" --steps 1 4 --out seven.mp4',
    run,
    arguments,
)
