"""The command line. It names recipes and directories and carries no hyper-parameters."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from . import commands
from .errors import UsageError, sentence

COMMANDS = ("distill", "sample", "curve", "plugins", "check", "cite")

EPILOG = """examples:
  flowmap distill quickstart --out runs/quickstart     a small student in minutes on two cores
  flowmap distill my_recipe.py --out runs/mine --steps 2   a trial: two iterations of every stage
  flowmap sample runs/quickstart/student --prompt "a seven moving up quickly" --steps 1 4 --out seven.mp4
  flowmap curve runs/quickstart --steps 1 2 4          measure quality against the number of steps again
  flowmap plugins                                      what is installed
  flowmap check wan21                                  does a backbone keep its promises?
  flowmap cite quickstart                              BibTeX of everything that a recipe uses
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence and leaves the exit to `main`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message[:1].lower() + message[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0; 1 for what went wrong while working; 2 for a wrong request; 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parse(arguments)
        options.console = argv is None
        return int(commands.RUN[options.command](options) or 0)
    except KeyboardInterrupt:
        again = shlex.join(["flowmap", *arguments])
        on = f"; go on with: {again}" if arguments[:1] == ["distill"] else ""
        print(f"\nflowmap: interrupted{on}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        said = sentence(error)
        if said is None or os.environ.get("FLOWMAP_TRACEBACK"):
            raise
        print(f"flowmap: {said.text}", file=sys.stderr)
        return said.code


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser, subparsers = build_parser()
    if not arguments:
        raise UsageError(f"no command: must be one of {', '.join(COMMANDS)}")
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise UsageError(unknown("command", arguments[0], COMMANDS))
    options, rest = parser.parse_known_args(arguments)
    if rest:
        known = [name for action in subparsers[options.command]._actions for name in action.option_strings]
        if not rest[0].startswith("-"):
            raise UsageError(f"{options.command} takes no further argument, but there is {rest[0]!r}")
        raise UsageError(f"{options.command}: {unknown('option', rest[0], known)}")
    return options


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no {kind} {name!r}: must be one of {', '.join(known)}{hint}"


def build_parser() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    parser = Parser(
        prog="flowmap",
        description="Distil a flow-matching diffusion model into one that samples in any number of steps.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=commands.version())
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return sub.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    distill = add("distill", "run a recipe", "flowmap distill quickstart --out runs/quickstart")
    distill.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or a Python file with RECIPE = Recipe(...)")
    distill.add_argument("--out", metavar="DIR", help="the run directory, runs/NAME by default")
    distill.add_argument(
        "--resume", type=resume, default="auto", metavar="auto|never", help="go on from a checkpoint in DIR"
    )
    distill.add_argument("--steps", type=positive, metavar="N", help="a trial: at most N iterations of every stage")
    distill.add_argument(
        "--method", metavar="NAME", help="train with another method, at the recipe's scale; also written RECIPE:NAME"
    )

    sample = add("sample", "make videos with a student", EPILOG.splitlines()[3].strip())
    sample.add_argument("student", metavar="STUDENT", help="the directory that distill wrote: runs/NAME/student")
    sample.add_argument("--prompt", action="append", required=True, help="may be given several times: a row each")
    sample.add_argument("--steps", type=positive, nargs="+", default=[4], metavar="N", help="several: a column each")
    sample.add_argument("--seed", type=whole, default=0, metavar="N")
    sample.add_argument("--size", type=size, metavar="FxHxW", help="frames, height, width; as in training by default")
    sample.add_argument(
        "--context", type=context, metavar="FILE", help="an image or a video to go on from, of the video's size"
    )
    sample.add_argument("--out", type=video, default="sample.mp4", metavar="FILE", help=".mp4, .gif or .png")

    curve = add("curve", "judge a finished run's student again", "flowmap curve runs/quickstart --steps 1 2 4")
    curve.add_argument("run", metavar="RUN", help="the run directory")
    curve.add_argument("--steps", type=positive, nargs="+", metavar="N", help="as in the recipe by default")
    curve.add_argument("--recipe", metavar="RECIPE", help="whose evaluation; the run's own by default")
    curve.add_argument("--out", metavar="DIR", help="where to write; the run directory by default")

    add("plugins", "list backbones, methods and exporters", "flowmap plugins")

    check = add("check", "run the conformance kit on a backbone", "flowmap check wan21")
    check.add_argument("backbone", metavar="BACKBONE", help="a name from `flowmap plugins`, a directory, or a hub id")

    cite = add("cite", "print BibTeX of a recipe's methods and backbone", "flowmap cite quickstart")
    cite.add_argument("recipe", metavar="RECIPE")
    return parser, dict(sub.choices)


def _checked(convert: Callable[[str], int], good: Callable[[int], bool], allowed: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: must be {allowed}") from None
        if not good(value):
            raise argparse.ArgumentTypeError(f"{text}: must be {allowed}")
        return value

    return read


positive = _checked(int, lambda n: n >= 1, "a whole number, at least 1")
whole = _checked(int, lambda n: n >= 0, "a whole number, at least 0")


def resume(text: str) -> str:
    if text not in ("auto", "never"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be auto or never")
    return text


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
