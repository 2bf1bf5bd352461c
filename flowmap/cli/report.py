"""flowmap report: one page of a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .command import Command
from .errors import UsageError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory, in whatever state the run is")
    parser.add_argument("--out", metavar="FILE", help="the page; RUN/index.html by default")


def run(options: Namespace) -> None:
    from .. import report

    path = Path(options.run)
    if not path.is_dir():
        raise UsageError(f"run {options.run!r}: there is no such directory; `flowmap distill` makes one")
    out = None if options.out is None else Path(options.out)
    if out is not None and out.is_dir():
        raise UsageError(
            f"--out {options.out!r}: is a directory: name a file, such as {options.out.rstrip('/')}/run.html"
        )
    print(report.write(path, out))


COMMAND = Command(
    "report", "write one page of a run, to look at it in a browser", "flowmap report runs/quickstart", run, arguments
)
