"""flowmap sample: make videos with a student."""

from __future__ import annotations

import argparse
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import BACKBONE, Command, positive, whole
from .errors import UsageError
from .numbers import above_zero
from .signs import told_as_it_goes
from .threads import wait_passively

if TYPE_CHECKING:
    from ..export.errors import ProfileError


VIDEOS = (".mp4", ".gif", ".png")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help="a run of distill, its student, or an export of it")
    parser.add_argument("--backbone", metavar="NAME", help=BACKBONE)
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times: a row each")
    parser.add_argument("--prompts", metavar="FILE", help="a text file with a prompt a line, after those of --prompt")
    told = "of sampling; 4 by default, or as many as the student was made for; several: a column each. Of a student "
    told += "that makes chunk after chunk also of each chunk its own, of which the last repeats: --steps 4,2"
    parser.add_argument("--steps", type=steps, nargs="+", metavar="N", help=told)
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the noise, 0 by default")
    parser.add_argument("--size", type=size, metavar="FxHxW", help="frames, height, width; as in training by default")
    parser.add_argument(
        "--context",
        type=context,
        metavar="FILE",
        help="an image or a video to go on from, of the video's size, for a student that makes chunk after chunk, such "
        "as those of the backbone far; the image that a student from images to videos begins with",
    )
    parser.add_argument(
        "--window",
        type=whole,
        nargs=2,
        metavar=("SINK", "RECENT"),
        help="remember so many of the first and of the last chunks alone, so that a video may be as long as one likes; "
        "for a student that makes chunk after chunk",
    )
    parser.add_argument(
        "--encoders",
        metavar="DIR",
        help="for an export: a student's directory with the text encoder and VAE; the one it was made of by default",
    )
    told = ".mp4, .gif or .png with all samples, labelled; or a directory: a file each; sample.mp4 by default"
    parser.add_argument("--out", type=video, metavar="FILE_OR_DIR", help=told)
    told = "like --out DIR with five samples of each prompt, in the names that VBench reads: PROMPT-I.mp4"
    parser.add_argument("--vbench", metavar="DIR", help=told)
    told = "of each prompt, for a directory: the noise of --seed, --seed + 1, ...; 1 by default, 5 with --vbench"
    parser.add_argument("--samples", type=positive, metavar="N", help=told)
    told = "frames a second of what is written; the backbone's by default"
    parser.add_argument("--fps", type=above_zero, metavar="RATE", help=told)
    parser.add_argument("--device", metavar="DEVICE", help="such as cpu or cuda:1; a GPU by default, if there is one")
    told = "of the network; float32 by default"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=told)


def run(options: Namespace) -> None:
    path = Path(options.student)
    if not path.is_dir():
        raise UsageError(f"student {options.student!r}: there is no such directory; `flowmap distill` makes one")
    if options.context is not None and not Path(options.context).is_file():
        raise UsageError(f"context {options.context!r}: there is no such file")
    prompts, out, each = _asked(options)
    wait_passively(options.console)
    from ..data.video_folder import frames_of
    from ..doing import counted
    from ..evaluation.sampling import Maker, grid_of_samples, one_each
    from ..export.api import is_export
    from ..export.errors import ProfileError
    from ..export.forms import located
    from ..kind import half, kind
    from ..plugins import student
    from ..window import Window

    exported = None
    if is_export(path):
        exported, path = path, _source(path, options.encoders)
    elif options.encoders is not None:
        raise UsageError(f"--encoders is for an export, and {options.student} is a student, which has its own")
    path, context = located(path), None if options.context is None else frames_of(Path(options.context))
    spec = student(path, options.backbone)
    if kind(path) == "half":
        raise UsageError(f"{path} is {half(path)}")
    if exported is None and not (path / "flowmap.json").is_file() and spec.sampling().kind == "euler":
        raise UsageError(
            f"{path} is a diffusion model and no student, and would be asked for few steps without guidance: `flowmap "
            "data synth` lets a teacher make samples, `flowmap distill` makes a student of it"
        )
    more = _placed(options, exported)
    fps = options.fps or spec.frame_rate()
    try:
        window = None if options.window is None else Window(*options.window)
        with told_as_it_goes(f"loading {path}"):
            maker = Maker.of(spec, path, options.size, context, **more, window=window)
        if each is None:
            grid_of_samples(maker, prompts, options.steps, options.seed, out, fps, counted)
        else:
            steps = None if options.steps is None else options.steps[0]
            made = one_each(maker, prompts, steps, options.seed, each, out, fps, counted)
    except ProfileError as error:
        raise UsageError(_outside(error, options.size)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    except NotImplementedError as error:
        told = f"{path}: {error}; from Python, flowmap.load(DIR) and flowmap.sample(u, noise, conditions) sample it"
        raise UsageError(told) from error
    print(out if each is None else f"{out}: {len(made)} files, PROMPT-I.mp4")


def _asked(options: Namespace) -> tuple[tuple[str, ...], Path, int | None]:
    """The prompts, where the samples go, and how many there are of each prompt where each has a file."""
    if options.prompts is not None and not Path(options.prompts).is_file():
        raise UsageError(f"prompts {options.prompts!r}: there is no such file")
    if not options.prompt and options.prompts is None:
        raise UsageError("no prompt: give --prompt TEXT, or --prompts FILE with one a line")
    if options.vbench is not None and options.out is not None:
        raise UsageError("--vbench DIR and --out are both where samples go: give one of them")
    out = Path(options.vbench or options.out or "sample.mp4")
    each = options.samples or (5 if options.vbench else 1)
    if options.vbench is None and out.suffix in VIDEOS:
        if options.samples is not None:
            raise UsageError(f"--samples is for a directory, a file each, and {out} is one file")
        each = None
    elif len(options.steps or ()) > 1:
        asked = " ".join(str(n) if isinstance(n, int) else ",".join(map(str, n)) for n in options.steps)
        raise UsageError(f"--steps {asked}: a directory has samples of one number of steps")
    more: tuple[str, ...] = ()
    if options.prompts is not None:
        from ..data.synth import read_prompts

        more = read_prompts(Path(options.prompts))
    return (*options.prompt, *more), out, each


def _placed(options: Namespace, exported: Path | None) -> dict[str, Any]:
    """Where and in which type it is made; an export says so itself."""
    if exported is not None:
        if own := next((f"--{name}" for name in ("device", "dtype") if getattr(options, name) is not None), None):
            raise UsageError(f"{own}: {exported} is an export, made for one device and in one type")
        return _exported(exported)
    import torch

    try:
        device = None if options.device is None else torch.device(options.device)
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {options.device}: {str(error).splitlines()[0]}") from None
    return {"device": device, "dtype": getattr(torch, options.dtype or "float32")}


def _source(path: Path, given: str | None) -> Path:
    """The directory with the text encoder and the VAE of the student that the export in `path` was made of."""
    from ..export.forms import located
    from ..export.manifest import Manifest
    from ..plugins import backbone

    manifest = Manifest.read(path)
    found = Path(given) if given else None if manifest.source is None else path / manifest.source
    if found is None or not found.is_dir():
        there = "it was made of a network in memory" if found is None else f"{given or manifest.source} is not there"
        raise UsageError(
            f"{path}: an export makes latents alone, text encoder and VAE are read from its student, and {there}: name "
            "a directory that has them with --encoders DIR"
        )
    folder = located(Path(os.path.normpath(found)))
    have = backbone(str(folder)).encoders()
    if other := [part for part, sha in manifest.encoders.items() if part in have and have[part] != sha]:
        raise UsageError(
            f"{folder}: its {' and '.join(other)} is not that of the student that {path} was made of: name that "
            "student's directory, or one with the same, with --encoders DIR"
        )
    return folder


def _exported(path: Path) -> dict[str, Any]:
    """The export in `path`, where it runs, and what its sampler must know, for `grid_of_samples`."""
    import torch

    from ..export.api import export
    from ..export.manifest import Manifest
    from ..model import Sampling

    manifest = Manifest.read(path)
    own = manifest.sampler
    return {
        "u": export.flow_map(path),
        "device": torch.device(manifest.target.device),
        "shape": manifest.latent or None,
        **({"rows": (batch.least, batch.most)} if (batch := manifest.sizes.get("batch")) else {}),
        "shift": own["shift"],
        "own": Sampling(own["sampler"], own.get("built_in_guidance"), _times(own)) if "sampler" in own else None,
    }


def _times(sampler: Mapping[str, Any]) -> tuple[float, ...] | None:
    return tuple(sampler["times"]) if "times" in sampler else None


def _outside(error: ProfileError, size: tuple[int, int, int] | None) -> str:
    """What a user gave in place of the tensor that does not fit: a prompt's length, a size in pixels."""
    if (at := error.outside) is None:
        return str(error)
    if at.name == "text":
        again = f"export again with --sizes text={at.found}"
        return f"the prompt takes {at.found} text tokens, this export takes {at.allowed()}: shorten it, or {again}"
    if size is None:
        return str(error)
    asked = dict(zip(("frames", "height", "width"), size, strict=True))
    if at.name in ("height", "width"):
        unit = asked[at.name] // at.found
        told = f"--size: {at.name} is {asked[at.name]}: this export was made for {at.allowed(unit)} pixels"
    else:
        told = f"{error}, in latents"
    return f"{told}; leave --size out for the size that it was made for"


def steps(text: str) -> int | tuple[int, ...]:
    if "," not in text:
        return positive(text)
    return tuple(positive(part) for part in text.split(","))


def size(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: must be frames x height x width, such as 9x32x32")
    frames, height, width = map(int, parts)
    return frames, height, width


def context(text: str) -> str:
    if not text.lower().endswith((".png", ".jpg", ".jpeg", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".gif")):
        raise argparse.ArgumentTypeError(f"{text!r}: must end in .png, .jpg, .mp4, .mov, .mkv, .webm or .gif")
    return text


def video(text: str) -> str:
    if Path(text).suffix not in (*VIDEOS, "") and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: must end in .mp4, .gif or .png, or be a directory")
    return text


COMMAND = Command(
    "sample",
    "make videos with a student",
    'flowmap sample runs/quickstart/student --prompt "a seven moving up quickly" --steps 1 4 --out seven.mp4',
    run,
    arguments,
)
