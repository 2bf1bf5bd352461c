"""`tensorrt`: one engine of TensorRT a graph, which torch-tensorrt builds from the traced program for the GPU here.

The engine is TensorRT's own file, so that what loads it needs TensorRT and torch, and not the compiler. It is tied to
the library's release and to this kind of GPU. Not yet run on a GPU by this project: what is tested is that every
operator of the graphs has a converter, and that the converters make of them a network that a builder takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.export import ExportedProgram

from .backend import Available, Job, quiet, versions
from .errors import BackendError, ExportError, MissingPackageError
from .graph import Call, Graph
from .manifest import Built, Manifest
from .spec import DTYPES, Asked, Precision, ShapeProfile
from .support import Support

OPTIONS = ("weight_streaming", "optimization_level")
INSTALL = "pip install 'flowmap-distill[tensorrt]' --extra-index-url INDEX, where INDEX is NVIDIA's own package index"
"""The library's wheels are at its vendor's; those on the package index only fetch them from there."""
ASK = (
    "with torch 2.13, pip install 'flowmap-distill[rtx]', and then pip install --no-deps torch-tensorrt-rtx==2.13.0 "
    "dllist psutil"
)
"""The same converters, with a library that is on the package index and does not crash where there is no GPU. It is made
for one release of torch, which nothing checks without its dependencies.
"""


@frozen
class TensorRt:
    """Strongly typed: every operator in the type that the student has there.

    Options: weight_streaming, for weights that do not fit beside the activations. optimization_level: 0 to 5, how long
    the builder searches.
    """

    exact: tuple[str, ...] = ("tensorrt",)
    builds_ahead: bool = False
    bound: bool = True

    def available(self) -> Available:
        """Of what runs an engine; what builds one is looked for by `check`."""
        found = versions("torch-tensorrt", "tensorrt")
        if find_spec("tensorrt") is None:
            return Available(False, f"TensorRT is not installed: {INSTALL}", found)
        return Available(True, versions=found)

    def check(self, asked: Asked) -> None:
        asked.known("tensorrt", OPTIONS)
        if asked.target.device != "cuda":
            here = "give the device cuda (--device cuda)" if torch.cuda.is_available() else "and there is none here"
            raise ExportError(f"tensorrt is built on a GPU, for GPUs of its kind, {here}")
        level = asked.options.get("optimization_level")
        if level is not None and level not in range(6):
            raise ExportError(f"optimization_level = {level!r}: must be from 0 to 5")
        found = versions("torch-tensorrt", "torch-tensorrt-rtx")
        if "torch-tensorrt-rtx" in found:
            raise MissingPackageError(
                "tensorrt: torch-tensorrt-rtx is installed, which takes the place of torch-tensorrt and builds other "
                f"engines: in an environment without it, {INSTALL}"
            )
        if "torch-tensorrt" not in found:
            raise MissingPackageError(f"tensorrt: torch-tensorrt is not installed: {INSTALL}")

    def supports(self, program: ExportedProgram) -> Support:
        """By the converters of torch-tensorrt, or those of torch-tensorrt-rtx, which are the same."""
        there = versions("torch-tensorrt", "torch-tensorrt-rtx").keys() & {"torch-tensorrt", "torch-tensorrt-rtx"}
        if not there:
            raise MissingPackageError(f"torch-tensorrt is not installed: with a GPU {INSTALL}; without one {ASK}")
        library = "tensorrt_rtx" if "torch-tensorrt-rtx" in there else "tensorrt"
        if find_spec(library) is None:
            line = ASK if library == "tensorrt_rtx" else INSTALL
            raise MissingPackageError(f"{library} is not installed, which {min(there)} needs: {line}")
        with tempfile.TemporaryDirectory() as folder:
            return work(program, Path(folder), {}, "torch-tensorrt cannot say which operators it has")

    def build(self, job: Job) -> str:
        """In a process of its own: a library that fails in it takes this one with it."""
        name = job.graph.name
        asked = {
            "engine": str(job.folder / f"{name}.engine"),
            **shapes(job.graph, job.profile, job.asked.precision),
            **{option: job.asked.options.get(option, default) for option, default in DEFAULTS.items()},
        }
        with tempfile.TemporaryDirectory(dir=job.folder) as folder:  # as large as the weights: beside the engine
            found = work(job.program, Path(folder), asked, f"tensorrt cannot build {name!r}")
        if not found.whole:
            raise BackendError(f"tensorrt cannot build {name!r} as one engine: {found.problem()}, says {found.by}")
        return f"{name}.engine"

    def compare(self, file: Path, built: Built, manifest: Manifest) -> tuple[Call, str]:
        return self.load(file, built, manifest), "the engine"

    def load(self, file: Path, built: Built, manifest: Manifest) -> Call:
        """Not yet run on a GPU by this project."""
        import tensorrt as trt

        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise BackendError(f"tensorrt {trt.__version__} cannot read {file}: export again")
        if manifest.options.get("weight_streaming"):
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return runner(engine, trt.TensorIOMode.INPUT, built)


DEFAULTS: Mapping[str, Any] = {"weight_streaming": False, "optimization_level": None}
ENDS = (lambda r: r.least, lambda r: r.usual, lambda r: r.most)


def shapes(graph: Graph, profile: ShapeProfile, precision: Precision) -> dict[str, Any]:
    """Of each input the least, usual and most sizes, and its type."""
    ends = [[[d if isinstance(d, int) else pick(profile[d]) for d in i.dims] for pick in ENDS] for i in graph.inputs]
    dtypes = [str(i.dtype or DTYPES[precision]).removeprefix("torch.") for i in graph.inputs]
    return {"shapes": ends, "dtypes": dtypes}


def work(program: ExportedProgram, folder: Path, asked: Mapping[str, Any], failing: str) -> Support:
    """Run `trt_work` on the program; files that the two exchange are in `folder`."""
    with quiet():
        torch.export.save(program, folder / "program.pt2")
    files = {"program": str(folder / "program.pt2"), "answer": str(folder / "answer.json")}
    done = subprocess.run(
        [sys.executable, "-m", "flowmap.export.trt_work"],
        input=json.dumps({**files, **asked}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        own = done.stderr.strip() if done.returncode > 0 else ""  # what a process that crashed wrote last is not why
        said = (own or f"it ended with {done.returncode}").splitlines()[-1]
        raise BackendError(f"{failing}: {said}")
    return Support(**json.loads((folder / "answer.json").read_text()))


def runner(engine: Any, inward: Any, built: Built) -> Call:
    """A call of `engine`, whose inputs have the order of the graph's and names of the compiler's."""
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    taken = [name for name in names if engine.get_tensor_mode(name) == inward]
    made = [name for name in names if name not in taken]
    if len(taken) != len(built.inputs) or len(made) != 1:
        raise BackendError(
            f"the engine of {built.name!r} takes {', '.join(taken)} and makes {', '.join(made)}: it should take "
            f"{len(built.inputs)} tensors and make one; export again"
        )
    context = engine.create_execution_context()
    if context is None:
        raise BackendError(f"tensorrt cannot run {built.name!r} here: it needs more GPU memory than there is")

    def call(*args: Tensor) -> Tensor:
        for name, a in zip(taken, args, strict=True):
            context.set_input_shape(name, tuple(a.shape))
            context.set_tensor_address(name, a.data_ptr())
        out = torch.empty(tuple(context.get_tensor_shape(made[0])), dtype=args[0].dtype, device=args[0].device)
        context.set_tensor_address(made[0], out.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise BackendError(f"tensorrt failed in {built.name!r}")
        return out

    return call
