"""flowmap export: write a student as a file that runs without flowmap."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .command import BACKBONE, Command
from .errors import UsageError
from .signs import lines
from .threads import wait_passively

if TYPE_CHECKING:
    from ..export.spec import Range
    from ..export.steps import Report
    from ..export.support import Support


FORMS = ("steps", "shift", "base", "rank", "with_base", "full_time")
"""Options of forms for other programs."""
ENGINES: Mapping[str, str] = {
    "refittable": "it takes other weights later (--to onnx, tensorrt-rtx)",
    "strip": "the engine holds no weights, and reads those of the ONNX file beside it (--to tensorrt-rtx)",
    "weight_streaming": "not all of the engine's weights need be in the GPU's memory at once (--to tensorrt, "
    "tensorrt-rtx)",
}
"""Options of back ends, where they have them."""


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help="a run of distill, its student, or an AnyFlow pipeline")
    parser.add_argument("--backbone", metavar="NAME", help=BACKBONE)
    parser.add_argument("--to", metavar="FORM", help="a form from `flowmap plugins`, such as onnx")
    parser.add_argument("--out", metavar="DIR", help="a directory that is empty or not there yet")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="write nothing: show the graphs of STUDENT, or of a backbone such as wan21, and what --to takes of them",
    )
    parser.add_argument(
        "--sizes",
        type=sizes,
        nargs="+",
        default=[],
        metavar="NAME=N",
        help="of batch, frames, height, width (of latents, not pixels) and text; N, or least:usual:most; as in training"
        " by default",
    )
    told = "of weights and activations; fp8 is of onnx and tensorrt-rtx"
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16", "fp8"), default="float32", help=told)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it will run")
    parser.add_argument(
        "--capability", nargs="+", default=[], metavar="N.N", help="of the GPUs to build for, such as 8.9"
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare the export with the student")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="time the student under torch.compile too; on a GPU by default, on a CPU it takes minutes",
    )
    parser.add_argument(
        "--refit", metavar="DIR", help="give the weights of STUDENT to the export in DIR; needs no --to"
    )
    for name, text in ENGINES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", default=None, help=text)
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="of a student for a fixed number of steps (--to comfyui, fixed-steps, some lora); 4 by default",
    )
    parser.add_argument("--shift", type=float, metavar="S", help="likewise; the student's by default")
    parser.add_argument(
        "--base", metavar="DIR", help="the pipeline that adapters were trained on, to compare with (--to lora, comfyui)"
    )
    parser.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="extract adapters of that rank from student - base, for a student that was trained whole or saved fused"
        " (--to lora, comfyui)",
    )
    parser.add_argument(
        "--with-base",
        action="store_true",
        default=None,
        help="write the base too, under Wan's own names, which ComfyUI loads (--to comfyui)",
    )
    parser.add_argument(
        "--full-time",
        action="store_true",
        default=None,
        help="for FastVideo, which puts no LoRA on embedders: the time embedding's change whole (--to comfyui)",
    )


def sizes(text: str) -> tuple[str, Range]:
    from ..export.errors import ExportError
    from ..export.spec import Range

    name, _, size = text.partition("=")
    try:
        return name, Range.parse(size)
    except ExportError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def run(options: Namespace) -> None:
    with lines():
        _run(options)


def _run(options: Namespace) -> None:
    if options.plan:
        plan(options)
        return
    if options.refit is not None:
        refit(options)
        return
    if missing := [f"--{name}" for name in ("to", "out") if vars(options)[name] is None]:
        raise UsageError(f"the following arguments are required: {', '.join(missing)}")
    path = directory("student", options.student)
    wait_passively(options.console)
    from ..export.api import export
    from ..export.spec import Target
    from ..validators import counted

    report = export(
        path,
        options.to,
        options.out,
        backbone=options.backbone,
        sizes=dict(options.sizes) or None,
        precision=options.precision,
        target=Target(options.device, tuple(options.capability)),
        check=not options.no_check,
        compile=options.compile,
        options={name: value for name in (*FORMS, *ENGINES) if (value := vars(options)[name]) is not None},
    )
    show(report)
    if isinstance(steps := report.manifest.sampler.get("steps"), int):
        print(f"for {counted(steps, 'step')}, and no other number{'' if options.steps else '; --steps N for another'}")


def directory(what: str, name: str) -> Path:
    if not Path(name).is_dir():
        made = "flowmap distill" if what == "student" else "flowmap export"
        raise UsageError(f"{what} {name!r}: there is no such directory; `{made}` makes one")
    return Path(name)


def refit(options: Namespace) -> None:
    if options.out is None:
        raise UsageError("the following arguments are required: --out")
    if own := given(options, "to", "sizes", "capability", "precision", "device", *FORMS, *ENGINES):
        raise UsageError(f"{own} cannot be given with --refit: all but the weights is that of {options.refit}")
    path, student = directory("export", options.refit), directory("student", options.student)
    wait_passively(options.console)
    from ..export.api import export

    check = not options.no_check
    show(export.refit(path, student, options.out, check=check, compile=options.compile))


def given(options: Namespace, *names: str) -> str | None:
    """The first of these options that is not as it is where nothing is said."""
    usual = {"precision": "float32", "device": "cpu", "sizes": [], "capability": [], "no_check": False}
    own = next((name for name in names if vars(options)[name] != usual.get(name)), None)
    return None if own is None else f"--{own.replace('_', '-')}"


def show(report: Report) -> None:
    for file, what in report.manifest.files.items():
        print(f"{report.path / file}  {what.bytes / 2**20:.1f} MiB")
    if report.worst is None:
        print("not compared with the student")
        return
    manifest = report.manifest
    narrow = manifest.precision != "float32" and manifest.graphs
    same = f" in {'fp16' if manifest.precision == 'fp8' else manifest.precision}" if narrow else ""
    print(f"largest error beside the student{same}: {report.worst:.1e} relative")
    if (extracted := manifest.config.get("extracted")) is not None:
        print(f"rank {extracted['rank']} leaves out {extracted['error']:.1e} of the change of the matrices")
    if narrow:
        said = "not measured" if report.narrowing is None else f"{report.narrowing:.1e} relative"
        print(f"largest error beside the student in float32: {said}")


def plan(options: Namespace) -> None:
    from ..export.plan import plan as planned

    if options.precision == "fp8":
        raise UsageError("--precision fp8: a plan is of the graphs before they are rounded: say fp16")
    if own := given(options, "out", "refit", "device", "capability", "no_check", "compile", *FORMS, *ENGINES):
        raise UsageError(
            f"{own} cannot be given with --plan, which writes nothing: it reads --to, --sizes and --precision"
        )
    asked = dict(options.sizes)
    for graph in planned(options.student, to=options.to, sizes=asked, precision=options.precision):
        print(f"{graph.name}: {graph.nodes} nodes, nothing complex, nothing in float64, no higher-order operators")
        print(f"  weights      {graph.weights / 2**30:8.2f} GiB in {options.precision}")
        print(f"  activations  {graph.activations / 2**30:8.2f} GiB at most, where nothing is fused")
        if graph.support is not None:
            print(f"  operators    {support(options.to, graph.support)}")
        for operator, count in graph.operators.items():
            print(f"  {count:8} {operator}")


def support(to: str, found: Support | str) -> str:
    if isinstance(found, str):
        return f"not known whether {to} takes all: {found}"
    engines = "one engine" if found.engines == 1 else f"{found.engines} engines"
    said = f"{found.convertible} of {found.operators} convertible, {engines}, says {found.by}"
    return said if found.whole else f"{said}; {to} cannot build it: {found.problem()}"


COMMAND = Command(
    "export",
    "write a student as a file that runs without flowmap, checked against it",
    "flowmap export runs/quickstart/student --to onnx --out exported",
    run,
    arguments,
)
