"""flowmap push: a student to the hub."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .command import Command
from .errors import UsageError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run of distill, or its student")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME or NAME on the hub; made if it is not there yet")
    parser.add_argument("--public", action="store_true", help="for all to see; private by default")


def run(options: Namespace) -> None:
    if not Path(options.run).is_dir():
        raise UsageError(f"run {options.run!r}: there is no such directory; `flowmap distill` makes one")
    from ..push import PushError, push

    try:
        done = push(options.run, options.repo, private=not options.public, say=_say)
    except PushError as error:
        raise UsageError(str(error)) from error
    for one in done.hidden:
        _say(f"a path of this machine went out as its last name: {one}")
    print(done.url)


def _say(text: str) -> None:
    print(f"flowmap: {text}", file=sys.stderr)


COMMAND = Command("push", "publish a student on the hub", "flowmap push runs/quickstart me/quickstart", run, arguments)
