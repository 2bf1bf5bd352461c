"""flowmap distill: run a recipe."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..kind import half as told_half
from ..kind import kind, told
from . import plan, previewing, recipes, settings
from .command import Command, positive
from .threads import wait_passively

ATTENTION = ("torch", "fastest", "fa4", "fa3", "cudnn", "fa2")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=recipes.HELP)
    parser.add_argument(
        "--out", metavar="DIR", help="the run directory; by default runs/NAME, of a trial runs/NAME_trial"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        type=resume,
        default="auto",
        metavar="auto|never",
        help="auto, the default, goes on from the newest checkpoint in DIR; never refuses a directory that has any",
    )
    start.add_argument(
        "--restart",
        dest="resume",
        action="store_const",
        const="restart",
        help="start anew: what is in DIR is moved to DIR.old-1, or the next number that is free",
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="a trial: at most N iterations of every stage")
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="train with another method of `flowmap plugins`, at the recipe's scale; also written RECIPE:NAME",
    )
    parser.add_argument(
        "--track", action="append", default=[], metavar="NAME", help="send records there too, such as to tensorboard"
    )
    parser.add_argument(
        "--profile", type=positive, default=0, metavar="N", help="write a trace of N iterations, DIR/profile/trace.json"
    )
    parser.add_argument(
        "--context",
        type=positive,
        metavar="N",
        help="under torchrun, N neighbouring processes share each sample's tokens",
    )
    previewing.arguments(parser)
    parser.add_argument(
        "--compile", action="store_true", help="compile the networks' blocks, once, which takes minutes"
    )
    parser.add_argument(
        "--attention", choices=ATTENTION, metavar="NAME", help=f"of a GPU: {', '.join(ATTENTION)}; torch by default"
    )
    parser.add_argument(
        "--tf32", action="store_const", const="tf32", dest="float32", help="products of float32 in TF32, on a GPU"
    )
    settings.arguments(parser)
    plan.arguments(parser)


def run(options: Namespace) -> None:
    plan.refuse_alone(options)
    if options.plan:
        return plan.run(options)
    name, method = recipes.split(options.recipe)
    if (method := options.method or method) is not None:
        name = f"{name}:{method}"
    recipes.find(name)
    previews = previewing.asked(options)
    wait_passively(options.console)
    recipe = recipes.asked(options).capped(options.steps)
    from ..distill import distill
    from ..kernels import Kernels
    from ..training.ranks.distributed import Distribution
    from ..training.run import primary

    out = Path(options.out or default_out(name, trial=options.steps is not None))
    spread = Distribution(context=options.context or 1)
    kernels = Kernels(options.compile, options.float32 or "ieee", options.attention or "torch")
    asked = {"track": options.track, "previews": previews, "profile": options.profile, "kernels": kernels}
    distill(recipe, out=out, resume=options.resume, distribution=spread, **asked)
    if primary():
        report(out)


def default_out(name: str, *, trial: bool) -> Path:
    """runs/NAME or runs/NAME_METHOD; a trial has its own, for it is another recipe."""
    recipe, method = recipes.split(name)
    parts = [Path(recipe).stem, *([method] if method else []), *(["trial"] if trial else [])]
    return Path("runs") / "_".join(parts)


def report(out: Path) -> None:
    """The table, and the paths of what was written."""
    table = out / "evaluation" / "table.txt"
    if table.is_file():
        print(f"\n{table.read_text()}")
    student = out / "student"
    half = student.is_dir() and kind(student) == "half"
    written = {
        "a page of all of it, for a browser": "index.html",
        (told(student) if student.is_dir() else "the student"): "student",
        "the teacher": "teacher",
        "its model card": "student/README.md",
        "quality against steps, drawn": "plots/nfe.png",
        "quality against steps, as numbers": "evaluation/nfe.json",
        "samples, side by side": "samples/grid.png",
        "samples, as videos": "samples",
        "what was asked, where it ran, how it went": "status.json",
    }
    for what, name in written.items():
        if (out / name).exists():
            print(f"{what:44}  {out / name}")
    if half:
        print(f"\nIt is {told_half(student)}.")


def resume(text: str) -> str:
    if text not in ("auto", "never"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be auto or never")
    return text


COMMAND = Command("distill", "run a recipe", "flowmap distill quickstart --out runs/quickstart", run, arguments)
