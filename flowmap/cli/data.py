"""flowmap data: prompt-latent pairs from a teacher, latents of one's own clips, and whether data is sound."""

from __future__ import annotations

import argparse
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import clips, recipes
from .command import Command, positive, whole
from .errors import UsageError, unknown
from .numbers import above_zero, part, scale
from .sample import size
from .threads import wait_passively

if TYPE_CHECKING:
    import torch

    from ..data.check import Finding
    from ..data.format import Index
    from ..data.shards import LatentShards
    from ..model import FlowMapSpec
    from ..recipe import Recipe

PICTURES = (".png", ".jpg", ".jpeg")


def arguments(parser: ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", metavar="TASK", parser_class=_strict(parser))
    parser.set_defaults(work=_none)

    synth = _task(tasks, "synth", "let a teacher make latents of prompts", SYNTH)
    synth.add_argument("teacher", metavar="RECIPE_OR_BACKBONE", help="a recipe, whose teacher it is, or a backbone")
    synth.add_argument("--prompts", required=True, metavar="FILE", help="a text file with a prompt a line")
    _common(synth, "as the recipe's evaluation has it, or the backbone's own")
    synth.add_argument("--each", type=positive, default=1, metavar="N", help="samples of every prompt, 1 by default")
    told = "of the teacher's sampler; by default 50, and 4 of a student"
    synth.add_argument("--steps", type=positive, metavar="N", help=told)
    told = (
        "of classifier-free guidance; by default the recipe's evaluation's, or the backbone's own; none of a student, "
        "which has its own"
    )
    synth.add_argument("--guidance", type=scale, metavar="W", help=told)
    synth.add_argument(
        "--shift", type=above_zero, metavar="S", help="of the sampler's times; the backbone's by default"
    )
    told = "for a teacher that begins with an image: one for all prompts, or a folder, by name one a prompt"
    synth.add_argument("--context", metavar="FILE_OR_DIR", help=told)
    synth.add_argument("--seed", type=whole, default=0, metavar="N", help="of the noise, 0 by default")
    synth.set_defaults(work=_synth)

    encode = _task(tasks, "encode", "encode a folder of clips, or tars of them, with their captions", ENCODE)
    encode.add_argument("clips", metavar="FOLDER", help="videos, each NAME.mp4 with NAME.txt; or .tar files of them")
    encode.add_argument(
        "--backbone",
        required=True,
        metavar="BACKBONE",
        help="a name, a directory or a hub id; or a recipe, whose backbone it is",
    )
    _common(encode, "the backbone's own; of a longer clip its first frames, cut about the centre")
    clips.arguments(encode)
    encode.set_defaults(work=_encode)

    check = _task(tasks, "check", "read all of it and say what is there and what is wrong", CHECK)
    check.add_argument("data", metavar="DIR", help="what synth or encode wrote")
    check.add_argument(
        "--backbone",
        metavar="BACKBONE",
        help="or a recipe: refuse latents and texts of other encoders, and shapes that its network does not take",
    )
    told = "write a page with decoded samples and their captions, to be looked at in a browser; with --backbone"
    check.add_argument("--look", type=clips.page, metavar="FILE", help=told)
    check.set_defaults(work=_check)


SYNTH = "flowmap data synth tiny_wan --prompts prompts.txt --out data/synthetic"
ENCODE = "flowmap data encode clips --backbone Wan-AI/Wan2.1-T2V-1.3B-Diffusers --out data/clips"
CHECK = "flowmap data check data/clips --backbone Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def _strict(parser: ArgumentParser) -> type[ArgumentParser]:
    """A parser of the same kind that names what it does not know itself, with what there is."""

    class Task(type(parser)):  # type: ignore[misc]
        def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Namespace, list[str]]:
            options, rest = super().parse_known_args(args, namespace)
            if rest and rest[0].startswith("-"):
                known = [name for action in self._actions for name in action.option_strings]
                raise UsageError(f"{self.prog.removeprefix('flowmap ')}: {unknown('option', rest[0], known)}")
            return options, rest

    return Task


def _task(tasks: Any, name: str, text: str, example: str) -> ArgumentParser:
    told = {"help": text, "description": f"{text[0].upper()}{text[1:]}.", "epilog": f"example: {example}"}
    parser: ArgumentParser = tasks.add_parser(
        name, **told, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    return parser


def _common(parser: ArgumentParser, size_default: str) -> None:
    told = f"frames, height, width of the videos; by default {size_default}"
    parser.add_argument("--size", type=size, metavar="FxHxW", help=told)
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="empty or not there yet; or where the same command was cut short: it goes on",
    )
    parser.add_argument(
        "--null-prompt", default="", metavar="TEXT", help="what guidance calls no prompt; by default the empty one"
    )
    parser.add_argument("--shard-size", type=positive, default=16, metavar="N", help="samples in a file, 16 by default")
    parser.add_argument(
        "--shard", type=part, default=(1, 1), metavar="I/N", help="only the I-th of N parts, for machines apart"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of networks and stored texts, float32 by default",
    )


def run(options: Namespace) -> int | None:
    work: Callable[[Namespace], int | None] = options.work
    return work(options)


def _none(options: Namespace) -> None:
    raise UsageError("data: no task: must be one of synth, encode, check")


def _synth(options: Namespace) -> None:
    if not Path(options.prompts).exists():
        raise UsageError(f"prompts {options.prompts!r}: there is no such file")
    wait_passively(options.console)
    recipe, spec = _resolve(options.teacher)
    from ..data.synth import Synthesis, read_prompts

    teacher, judged = (recipe.spec_of("teacher") if recipe else spec), _evaluation(recipe)
    prompts = read_prompts(Path(options.prompts))
    asked = Synthesis(
        prompts,
        options.size or judged.get("shape"),
        steps=options.steps,
        guidance=options.guidance or judged.get("guidance"),
        shift=options.shift,
        null_prompt=options.null_prompt,
        each=options.each,
        seed=options.seed,
        shard=options.shard_size,
        images=() if options.context is None else _images(Path(options.context), len(prompts)),
    )
    out = Path(options.out)
    on: dict[str, Any] = {"device": _device(), "dtype": _dtype(options)}
    _told(options.teacher, "sampling", out, partial(asked.run, teacher, out, **on, part=options.shard))


def _images(path: Path, prompts: int) -> list[str]:
    """One a prompt: the files of a folder in the order of their names, or one file again and again."""
    if path.is_file():
        return [str(path)] * prompts
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES) if path.is_dir() else []
    if len(files) != prompts:
        what = f"has {len(files)} images" if path.is_dir() else "is not there"
        raise UsageError(f"context {str(path)!r} {what}: must be an image, or a folder with {prompts}, one a prompt")
    return [str(file) for file in files]


def _encode(options: Namespace) -> None:
    wait_passively(options.console)
    _, spec = _resolve(options.backbone)
    told = partial(_told, options.backbone, "encoding")
    clips.encode(options, spec, told, device=_device(), dtype=_dtype(options), part=options.shard)


def _check(options: Namespace) -> int:
    from ..data.check import check

    if options.look is not None and options.backbone is None:
        raise UsageError("--look decodes latents: give the --backbone whose they are")
    spec = None if options.backbone is None else _resolve(options.backbone)[1]
    path, refused, said = Path(options.data), 0, list[str]()
    for finding in chain(check(path, spec), _fit(path, spec)):
        refused += finding.kind == "refused"
        said.append(f"{'' if finding.kind == 'note' else finding.kind:7}  {finding.text}")
        print(said[-1], flush=True)
    again = "; a damaged file that you delete is made again by the command that made it" if _index(path) else ""
    print(f"refused{again}" if refused else "sound")
    if options.look is not None and spec is not None and not refused:
        from ..data.look import look

        look(path, spec, options.look, said, device=_device())
        print(options.look)
    return 1 if refused else 0


def _index(path: Path) -> Index | None:
    """Of data that is there; what is wrong with it otherwise, `check` says."""
    from ..data import DataError
    from ..data.format import Index

    try:
        return Index.read(path)
    except DataError:
        return None


def _fit(path: Path, backbone: FlowMapSpec | None) -> Iterator[Finding]:
    """Of data that is there, where there is a network to compare it with."""
    from .fit import fit

    if backbone is not None and (index := _index(path)) is not None:
        yield from fit(index, backbone)


def _resolve(name: str) -> tuple[Recipe | None, FlowMapSpec]:
    """A recipe and its backbone, or a backbone alone; a directory is a backbone."""
    from ..plugins import backbone

    if not Path(name).is_dir() and (recipes.split(name)[0] in recipes.known() or name.endswith(".py")):
        recipe = recipes.load(name)
        spec = recipe.backbone
    else:
        recipe, spec = None, backbone(name, also=recipes.known())
    try:
        spec.validate()
    except ValueError as error:
        raise UsageError(str(error)) from error
    return recipe, spec


def _evaluation(recipe: Recipe | None) -> dict[str, Any]:
    """How the recipe's evaluation samples from the teacher."""
    from ..evaluation import QualityCurve

    if recipe is None or not isinstance(recipe.evaluation, QualityCurve):
        return {}
    return {"shape": recipe.evaluation.shape, "guidance": recipe.evaluation.guides.get("teacher")}


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(options: Namespace) -> torch.dtype:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]


def _told(backbone: str, part: str, out: Path, work: Callable[[], LatentShards | None]) -> None:
    """Run `work`, with lines of progress, and say what there is at its end.

    backbone: as it was asked for. part: what `work` calls most of what it does.
    """
    from ..data.format import told
    from ..data.remarks import remarks
    from ..doing import heard
    from ..training.progress import Progress
    from ..validators import counted

    shown, data = Progress(speaks=True), None
    shown.forecast.expect(part, 1)
    try:
        with heard(shown.doing):
            data = work()
        shown.forecast.over(part)
    except BaseException:
        shown.close(failed=True)
        raise
    shown.close()
    if data is None:
        print(f"{out}: this part is finished; the index comes with the last part")
    else:
        look = shlex.join(["flowmap", "data", "check", str(out), "--backbone", backbone, "--look", "page.html"])
        print(f"{out}: {counted(len(data), 'sample')}; look at them with `{look}`")
    for remark in remarks(data.index) if data is not None else ():
        print(f"warning: {remark}")
    if data is not None and (left := data.index.skipped):
        print(f"{counted(len(left), 'clip')} left out:{told([(one.sample, one.why) for one in left])}")


COMMAND = Command(
    "data", "make, encode and check data", "flowmap data check data/clips --backbone tiny_wan", run, arguments
)
