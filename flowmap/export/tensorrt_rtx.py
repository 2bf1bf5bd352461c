"""`tensorrt-rtx`: engines of TensorRT-RTX from the ONNX file, built ahead for named GPUs on a machine that has none.

An engine is tied to the library's release, and to the compute capabilities that it was built for. Where there is no
GPU, what is compared with the student is the ONNX file, in ONNX Runtime, and parity.json says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from attrs import evolve, frozen
from torch import Tensor

from .backend import Available, Job, versions
from .errors import BackendError, ExportError
from .graph import Call
from .manifest import Built, Manifest
from .onnx import Onnx, check_precision, write
from .spec import Asked, Target

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""That engines are built ahead for; 9.0 is not among them."""
FLAGS = {"refit": "REFIT", "weight_streaming": "WEIGHT_STREAMING", "strip_weights": "STRIP_PLAN"}
"""Options, and the builder's flags."""
INSTALL = "pip install 'flowmap-distill[rtx]'"


@frozen
class TensorRtRtx:
    exact: tuple[str, ...] = ("tensorrt-rtx",)
    builds_ahead: bool = True
    bound: bool = False

    def available(self) -> Available:
        names = ("tensorrt_rtx", "onnx", "onnxscript", "onnxruntime")
        found = versions("tensorrt-rtx", *names[1:])
        if missing := [name for name in names if find_spec(name) is None]:
            return Available(False, f"{', '.join(missing)} is not installed: {INSTALL}", found)
        return Available(True, versions=found)

    def check(self, asked: Asked) -> None:
        asked.known("tensorrt-rtx", tuple(FLAGS))
        target = asked.target
        if target.device != "cuda" or not target.capabilities:
            raise ExportError(
                "tensorrt-rtx is built for CUDA GPUs that are named: give the device cuda and compute capabilities, of "
                + ", ".join(CAPABILITIES)
            )
        for name in target.capabilities:
            if name not in CAPABILITIES:
                raise ExportError(f"tensorrt-rtx does not build for {name}: must be of {', '.join(CAPABILITIES)}")
        check_precision(asked)

    def build(self, job: Job) -> str:
        """In a process of its own: a library that fails in it takes this one with it."""
        name = job.graph.name
        write(job.program, job.graph, job.folder / f"{name}.onnx")
        shapes = {
            i.name: [[d if isinstance(d, int) else pick(job.profile[d]) for d in i.dims] for pick in ENDS]
            for i in job.graph.inputs
            if any(isinstance(d, str) and not job.profile[d].fixed for d in i.dims)
        }
        asked = {
            "onnx": str(job.folder / f"{name}.onnx"),
            "engine": str(job.folder / f"{name}.engine"),
            "capabilities": job.asked.target.capabilities,
            "flags": [FLAGS[option] for option, on in job.asked.options.items() if on],
            "shapes": shapes,
        }
        done = subprocess.run(
            [sys.executable, "-m", "flowmap.export.rtx_build"], input=json.dumps(asked), capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
            raise BackendError(f"tensorrt-rtx cannot build {name!r}: {said}")
        return f"{name}.engine"

    def compare(self, file: Path, built: Built, manifest: Manifest) -> tuple[Call, str]:
        if torch.cuda.is_available():
            return self.load(file, built, manifest), "the engine"
        there = evolve(manifest, target=Target("cpu"))
        said = "the ONNX file in ONNX Runtime; the engine was built and not run, there is no GPU here"
        return Onnx().load(file.with_suffix(".onnx"), built, there), said

    def load(self, file: Path, built: Built, manifest: Manifest) -> Call:
        """Not yet run on a GPU by this project."""
        import tensorrt_rtx as trt

        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise BackendError(f"tensorrt-rtx {trt.__version__} cannot read {file}: export again")
        context = engine.create_execution_context()
        names = [i.name for i in built.inputs]

        def call(*args: Tensor) -> Tensor:
            for name, a in zip(names, args, strict=True):
                context.set_input_shape(name, tuple(a.shape))
                context.set_tensor_address(name, a.data_ptr())
            shape = tuple(context.get_tensor_shape(built.output))
            made = torch.empty(shape, dtype=args[0].dtype, device=args[0].device)
            context.set_tensor_address(built.output, made.data_ptr())
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise BackendError(f"tensorrt-rtx failed in {built.name!r}")
            return made

        return call


ENDS = (lambda r: r.least, lambda r: r.usual, lambda r: r.most)
