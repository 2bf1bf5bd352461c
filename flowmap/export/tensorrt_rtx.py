"""`tensorrt-rtx`: engines of TensorRT-RTX from the ONNX file, built ahead for named GPUs on a machine that has none.

An engine is tied to the library's release, and to the compute capabilities that it was built for. Where there is no
GPU, what is compared with the student is the ONNX file, in ONNX Runtime, and parity.json says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from . import fp8, rtx_load
from .backend import Available, Job, versions
from .errors import BackendError, ExportError, NoDeviceError
from .graph import Call, Input
from .manifest import Built, Manifest
from .onnx import Onnx, check_precision, write
from .spec import Asked, ShapeProfile, Target
from .weights import Refits, fill

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""That engines are built ahead for; 9.0 is not among them."""
FLAGS = {"refittable": "REFIT", "weight_streaming": "WEIGHT_STREAMING", "strip": "STRIP_PLAN"}
"""Options, and the builder's flags. Of what TensorRT has besides, the level of hardware compatibility and the cache of
timings do nothing here, and an engine that other releases read needs a runtime that is not in the package."""
ON_A_GPU = ("refittable", "strip")
"""Options that the builder, in every release from 1.5 to 1.7, fails with on a machine without a driver."""
INSTALL = "pip install 'flowmap-distill[rtx]'"


@frozen
class TensorRtRtx(Refits):
    """Options: `FLAGS`. strip: the engine has no weights, and takes those of the ONNX file beside it when it is loaded;
    with refittable they may be others than it was built with.
    """

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
        asked.known("tensorrt-rtx", tuple(FLAGS), fp8=True, ahead=True)
        target = asked.target
        if target.device != "cuda" or not target.capabilities:
            raise ExportError(
                "tensorrt-rtx is built for CUDA GPUs that are named: give the device cuda (--device) and compute "
                f"capabilities (--capability), of {', '.join(CAPABILITIES)}"
            )
        for name in target.capabilities:
            if name not in CAPABILITIES:
                raise ExportError(f"tensorrt-rtx does not build for {name}: must be of {', '.join(CAPABILITIES)}")
        check_precision(asked)
        fp8.check_capabilities(asked)
        wanted = [option for option in ON_A_GPU if asked.options.get(option)]
        if wanted and not torch.cuda.is_available():
            raise NoDeviceError(
                f"tensorrt-rtx builds an engine that is {wanted[0].replace('strip', 'stripped')} on a machine with a "
                f"GPU alone, and there is none here: leave it out, other weights then take an engine built again"
            )

    def build(self, job: Job) -> str:
        graph, asked = job.graph, job.asked
        write(job.program, graph, job.folder / f"{graph.name}.onnx")
        return self._engine(job.folder, graph.name, graph.inputs, job.profile, asked.target, asked.options)

    def _engine(
        self,
        folder: Path,
        name: str,
        inputs: Sequence[Input],
        profile: ShapeProfile,
        target: Target,
        options: Mapping[str, Any],
    ) -> str:
        """From the ONNX file; in a process of its own: a library that fails in it takes this one with it."""
        shapes = {
            i.name: [[d if isinstance(d, int) else pick(profile[d]) for d in i.dims] for pick in ENDS]
            for i in inputs
            if any(isinstance(d, str) and not profile[d].fixed for d in i.dims)
        }
        asked = {
            "onnx": str(folder / f"{name}.onnx"),
            "engine": str(folder / f"{name}.engine"),
            "capabilities": target.capabilities,
            "flags": [FLAGS[option] for option, on in options.items() if on],
            "shapes": shapes,
        }
        done = subprocess.run(
            [sys.executable, "-m", "flowmap.export.rtx_build"], input=json.dumps(asked), capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
            raise BackendError(f"tensorrt-rtx cannot build {name!r}: {said}")
        return f"{name}.engine"

    def check_refit(self, manifest: Manifest, asked: Asked) -> None:
        check_precision(asked)
        refittable, strip = (bool(manifest.options.get(option)) for option in ("refittable", "strip"))
        if strip and not refittable:
            raise ExportError("this tensorrt-rtx export is stripped and takes its own weights alone: export again")
        if refittable and not strip and not torch.cuda.is_available():
            raise NoDeviceError("a refittable engine of tensorrt-rtx is refitted on a GPU, and there is none here")

    def refit(self, folder: Path, built: Built, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
        """The ONNX file; and the engine by its refitter, or built again from that file where it has none.

        A stripped engine stays as it is: what it is loaded with has changed.
        """
        fill(folder / f"{built.name}.onnx", tensors)
        if not manifest.options.get("refittable"):
            profile = ShapeProfile(built.ranges)
            self._engine(folder, built.name, built.inputs, profile, manifest.target, manifest.options)
        elif not manifest.options.get("strip"):
            engine = rtx_load.refitted(folder / built.file, folder / f"{built.name}.onnx")
            (folder / built.file).write_bytes(rtx_load.serialised(engine))

    def compare(self, file: Path, built: Built, manifest: Manifest) -> tuple[Call, str]:
        if torch.cuda.is_available():
            return self.load(file, built, manifest), "the engine"
        there = evolve(manifest, target=Target("cpu"))
        said = "the ONNX file in ONNX Runtime; the engine was built and not run, there is no GPU here"
        return Onnx().load(file.with_suffix(".onnx"), built, there), said

    def load(self, file: Path, built: Built, manifest: Manifest) -> Call:
        """Not yet run on a GPU by this project."""
        if manifest.options.get("strip"):
            engine = rtx_load.refitted(file, file.with_suffix(".onnx"))
        else:
            engine = rtx_load.engine(file)
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
