"""flowmap status: how a run goes, and what to do next."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .command import Command
from .errors import UsageError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory")


def run(options: Namespace) -> int:
    """1 for a run that has failed or was killed."""
    from ..report import sections
    from ..report.facts import Facts
    from ..training.store import status

    path = Path(options.run)
    if not path.is_dir():
        raise UsageError(f"run {options.run!r}: there is no such directory; `flowmap distill` makes one")
    told = status.lines(path)
    if (spent := sections.times(Facts.read(path))) is not None:
        told["training"] = spent
    width = max(map(len, told))
    for name, text in told.items():
        print(f"{name + ':':{width + 1}}  {text}")
    found = status.read(path)
    return int(found.lost or found.state == "failed")


COMMAND = Command("status", "say how a run goes and what to do next", "flowmap status runs/quickstart", run, arguments)
