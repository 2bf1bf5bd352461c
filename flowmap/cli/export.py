"""flowmap export: write a student as a file that runs without flowmap."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .command import Command
from .errors import UsageError
from .threads import wait_passively

if TYPE_CHECKING:
    from ..export.spec import Range


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help="the directory that distill wrote, or an AnyFlow pipeline's")
    parser.add_argument("--to", metavar="FORM", help="a form from `flowmap plugins`, such as onnx")
    parser.add_argument("--out", metavar="DIR", help="a directory that is empty or not there yet")
    parser.add_argument(
        "--plan", action="store_true", help="write nothing: show the graphs of STUDENT, or of a backbone such as wan21"
    )
    parser.add_argument(
        "--sizes",
        type=sizes,
        nargs="+",
        default=[],
        metavar="NAME=N",
        help="of batch, frames, height, width (of latents) and text; N, or least:usual:most; as in training by default",
    )
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it will run")
    parser.add_argument(
        "--capability", nargs="+", default=[], metavar="N.N", help="of the GPUs to build for, such as 8.9"
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare the export with the student")


def sizes(text: str) -> tuple[str, Range]:
    from ..export.errors import ExportError
    from ..export.spec import Range

    name, _, size = text.partition("=")
    try:
        return name, Range.parse(size)
    except ExportError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def run(options: Namespace) -> None:
    if options.plan:
        plan(options)
        return
    if options.to is None or options.out is None:
        raise UsageError("the following arguments are required: --to, --out")
    path = Path(options.student)
    if not path.is_dir():
        raise UsageError(f"student {options.student!r}: there is no such directory; `flowmap distill` makes one")
    wait_passively(options.console)
    from ..export.api import export
    from ..export.spec import Target

    report = export(
        path,
        options.to,
        options.out,
        sizes=dict(options.sizes),
        precision=options.precision,
        target=Target(options.device, tuple(options.capability)),
        check=not options.no_check,
    )
    for file, what in report.manifest.files.items():
        print(f"{report.path / file}  {what.bytes / 2**20:.1f} MiB")
    if report.worst is None:
        print("not compared with the student")
    else:
        print(f"largest error beside the student: {report.worst:.1e} relative")


def plan(options: Namespace) -> None:
    from ..export.plan import plan as planned

    asked = dict(options.sizes)
    for graph in planned(options.student, sizes=asked, precision=options.precision):
        print(f"{graph.name}: {graph.nodes} nodes, nothing complex, nothing in float64, no higher-order operators")
        print(f"  weights      {graph.weights / 2**30:8.2f} GiB in {options.precision}")
        print(f"  activations  {graph.activations / 2**30:8.2f} GiB at most, where nothing is fused")
        for operator, count in graph.operators.items():
            print(f"  {count:8} {operator}")


COMMAND = Command(
    "export",
    "write a student as a file that runs without flowmap, checked against it",
    "flowmap export runs/quickstart/student --to onnx --out exported",
    run,
    arguments,
)
