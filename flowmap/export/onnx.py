"""`onnx`: a file that ONNX Runtime, TensorRT and TensorRT-RTX accept; run here by ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor

from . import constants, fp8, weights
from .backend import Available, Job, quiet, versions
from .errors import ExportError, NoDeviceError
from .graph import Call
from .manifest import Built, Manifest
from .spec import Asked
from .weights import Refits

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from .graph import Graph

OPSET, OPSET_FP8, OPSET_BF16 = 18, 21, 22
"""Not 23: its `Attention` fails in TensorRT and TensorRT-RTX in float32. 8 bits are there from 19 on, but ONNX Runtime
moves transpositions past them, which take them from 21 on. `Conv` takes bfloat16 from 22 on."""
INLINE = 1 << 30
"""Bytes of weights above which they stand in a file of their own: protobuf ends at 2 GiB."""


@frozen
class Onnx(Refits):
    """Every trained tensor is an initialiser, so that the file takes others: the option `refittable` says no more."""

    exact: tuple[str, ...] = ()
    builds_ahead: bool = True
    bound: bool = False

    def available(self) -> Available:
        names = ("onnx", "onnxscript", "onnxruntime")
        if missing := [name for name in names if find_spec(name) is None]:
            return Available(
                False, f"{', '.join(missing)} is not installed: pip install 'flowmap-distill[onnx]'", versions(*names)
            )
        return Available(True, versions=versions(*names))

    def check(self, asked: Asked) -> None:
        asked.known("onnx", ("refittable",), fp8=True)
        check_runs_here(asked)

    def build(self, job: Job) -> str:
        file = f"{job.graph.name}.onnx"
        write(job.program, job.graph, job.folder / file)
        return file

    def check_refit(self, manifest: Manifest, asked: Asked) -> None:
        check_runs_here(asked)

    def refit(self, folder: Path, built: Built, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
        weights.fill(folder / built.file, tensors)

    def compare(self, file: Path, built: Built, manifest: Manifest) -> tuple[Call, str]:
        return self.load(file, built, manifest), "the file, in ONNX Runtime"

    def load(self, file: Path, built: Built, manifest: Manifest) -> Call:
        import onnxruntime

        wanted = provider(manifest.target.device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()  # as many as the student has beside it
        session = onnxruntime.InferenceSession(str(file), options, providers=[wanted])
        names = [i.name for i in built.inputs]

        def call(*args: Tensor) -> Tensor:
            fed = {name: a.detach().cpu().numpy() for name, a in zip(names, args, strict=True)}
            return torch.from_numpy(session.run(None, fed)[0]).to(args[0].device)

        return call


def provider(device: str) -> str:
    """What ONNX Runtime calls `device`, or an `ExportError` where the one that is installed cannot run there."""
    import onnxruntime

    wanted = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if wanted not in (have := onnxruntime.get_available_providers()):
        raise ExportError(
            f"this export runs on {device}, and ONNX Runtime here has {', '.join(have)}: install onnxruntime-gpu"
        )
    return wanted


def check_runs_here(asked: Asked) -> None:
    """An `ExportError` where ONNX Runtime cannot run here what is asked for, and is to compare it with the student."""
    if not asked.check:
        return
    if asked.target.device == "cuda":
        if not torch.cuda.is_available():
            raise NoDeviceError(
                "onnx for a CUDA GPU (device, --device) is compared with the student on one, and there is none here: "
                "write it unseen (check=False, --no-check), or do it where there is one"
            )
        if find_spec("onnxruntime") is not None:
            provider("cuda")
    elif asked.precision == "bf16":
        raise ExportError(
            "onnx in bf16 does not run on a CPU, ONNX Runtime has no MatMul, Conv or Add of that type there: export "
            "float32 or fp16, or write it unseen for another engine (check=False, --no-check)"
        )


def check_precision(asked: Asked) -> None:
    """ONNX Runtime, in an engine's place, computes nothing in bf16 on a CPU."""
    if asked.precision == "bf16" and asked.check and not torch.cuda.is_available():
        raise ExportError(
            "bf16 cannot be compared with the student here, ONNX Runtime has no MatMul, Conv or Add of that type on a "
            "CPU: export float32, or do without the comparison (check=False, --no-check)"
        )


def write(program: ExportedProgram, graph: Graph, path: Path) -> None:
    """By torch's exporter, the inputs' dimensions under the profile's names; and where its weights are, checked."""
    import onnx

    types = {v.dtype for v in program.state_dict.values()}
    narrow = fp8.E4M3 in types
    with quiet(), _silent(), torch.no_grad():
        made: Any = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET_FP8 if narrow else OPSET_BF16 if torch.bfloat16 in types else OPSET,
            custom_translation_table=fp8.translations() if narrow else None,
            input_names=[i.name for i in graph.inputs],
            output_names=[graph.output],
            optimize=False,
        )
        held = weights.optimised(made, program)
    size = sum(v.numel() * v.element_size() for v in program.state_dict.values())
    made.save(str(path), external_data=size > INLINE)
    model = onnx.load(str(path), load_external_data=False)
    for i, value in zip(graph.inputs, model.graph.input, strict=True):
        for name, dim in zip(i.dims, value.type.tensor_type.shape.dim, strict=True):
            if isinstance(name, str) and dim.dim_param:
                dim.dim_param = name
    del model.graph.value_info[:]  # shapes of everything between, under the tracer's names
    onnx.save(model, str(path))
    weights.require_complete(path, held, program.state_dict, weights.used(program))
    weights.add(path.parent, graph.name, held)
    constants.add(path.parent, graph.name, constants.of(graph.module, program))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Its progress goes to stdout, and it warns of torchvision, which nobody needs here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
