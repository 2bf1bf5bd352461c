"""The command line. It names recipes and directories and has no option for a hyper-parameter: `--set` has them all."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from .. import __version__
from . import about, citing, curve, data, distill, export, importing, inspecting, push, report, sample, source, status
from .command import Command
from .errors import UsageError, after_first, nearest, sentence, unknown

COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        distill.COMMAND,
        source.COMMAND,
        status.COMMAND,
        report.COMMAND,
        sample.COMMAND,
        curve.COMMAND,
        inspecting.COMMAND,
        export.COMMAND,
        importing.COMMAND,
        push.COMMAND,
        data.COMMAND,
        about.PLUGINS,
        about.CHECK,
        citing.CITE,
    )
}

EPILOG = """examples:
  flowmap distill quickstart --out runs/quickstart     a small student in minutes on two cores
  flowmap distill my_recipe.py --steps 2               a trial: two iterations of every stage
  flowmap distill quickstart --set 'stages.*.batch=8'  a recipe with other values
  flowmap recipe quickstart > mine.py                  a recipe's file, to be changed
  flowmap status runs/quickstart                       how a run goes, and what to do next
  flowmap report runs/quickstart                       one page of a run: players, curve, health, losses, cost
  flowmap sample runs/quickstart/student --prompt "a seven moving up quickly" --steps 1 4 --out seven.mp4
  flowmap curve runs/quickstart --steps 1 2 4          measure quality against the number of steps again
  flowmap inspect wan --prompt "a cat"                  what a network is: a velocity, a flow map, guided
  flowmap export runs/quickstart/student --to onnx --out exported   a file that runs without flowmap
  flowmap import self_forcing_dmd.pt --base wan --out self_forcing  weights that others published, to go on with
  flowmap push runs/quickstart me/quickstart           the student to the hub, private by default
  flowmap data encode clips --backbone wan21 --out data/clips      your own clips, ready for training
  flowmap data check data/clips --backbone wan21       is encoded data sound, and of this model's VAE?
  flowmap plugins                                      what is installed
  flowmap check wan21                                  does a backbone keep its promises?
  flowmap cite quickstart                              BibTeX of everything that a recipe uses
  flowmap cite aapt                                    BibTeX of a method
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence and leaves the exit to `main`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message[:1].lower() + message[1:])

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """With the nearest of the choices."""
        if action.choices is not None and value not in action.choices:
            known = [*map(str, action.choices)]
            text = f"invalid choice: {value!r}: must be one of {', '.join(known)}{nearest(str(value), known)}"
            raise argparse.ArgumentError(action, text)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0; 1 for what went wrong while working; 2 for a wrong request; 128 + n for signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parse(arguments)
        options.console = argv is None
        return int(COMMANDS[options.command].run(options) or 0)
    except KeyboardInterrupt as stopped:
        number, name = _signal(stopped)
        from ..training.store import status as state

        again = shlex.join(["flowmap", *state.again(arguments)])
        on = f"; go on with: {again}" if arguments[:1] in (["distill"], ["data"]) else ""
        print(f"\nflowmap: {name}{on}", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        said = sentence(error)
        if said is None or os.environ.get("FLOWMAP_TRACEBACK"):
            raise
        if said.shared:
            after_first()
        print(f"flowmap: {said.text}", file=sys.stderr)
        return said.code


def _signal(stopped: KeyboardInterrupt) -> tuple[int, str]:
    """Number and name of the signal that stopped the program."""
    import signal

    from ..training.interrupt import Preempted

    number = stopped.number if isinstance(stopped, Preempted) else signal.SIGINT
    return number, "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser, subparsers = build_parser()
    if not arguments:
        raise UsageError(f"no command: must be one of {', '.join(COMMANDS)}")
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise UsageError(unknown("command", arguments[0], [*COMMANDS]))
    options, rest = parser.parse_known_args(arguments)
    if rest:
        known = [name for action in subparsers[options.command]._actions for name in action.option_strings]
        if not rest[0].startswith("-"):
            raise UsageError(f"{options.command} takes no further argument, but there is {rest[0]!r}")
        raise UsageError(f"{options.command}: {unknown('option', rest[0], known)}")
    return options


def build_parser() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    parser = Parser(
        prog="flowmap",
        description="Distil a flow-matching diffusion model into one that samples in any number of steps.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"flowmap {__version__}")
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        its = sub.add_parser(
            command.name,
            help=command.text,
            description=command.text[0].upper() + command.text[1:] + ".",
            epilog=f"example: {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.arguments(its)
    return parser, dict(sub.choices)
