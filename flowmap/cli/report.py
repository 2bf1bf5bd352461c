"""flowmap report: one page of a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .command import Command
from .errors import UsageError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory, in whatever state the run is")
    parser.add_argument("--out", metavar="FILE", help="the page; RUN/index.html by default")
    told = "VBench's *_eval_results.json of the student's videos: a table of it goes into the student's card"
    parser.add_argument("--vbench", metavar="FILE", help=told)


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
    if options.vbench is not None:
        print(_vbench(path, Path(options.vbench)))
    print(report.write(path, out))


def _vbench(run: Path, results: Path) -> Path:
    from ..evaluation.card import add_vbench
    from ..evaluation.vbench import VBenchError

    try:
        return add_vbench(run, results)
    except VBenchError as error:
        raise UsageError(str(error)) from error


COMMAND = Command(
    "report", "write one page of a run, to look at it in a browser", "flowmap report runs/quickstart", run, arguments
)
