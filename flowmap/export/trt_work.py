"""Works with torch-tensorrt: JSON on stdin, from `tensorrt`. A program of its own, so that a crash is an exit code.

`{"program": FILE, "answer": FILE}` asks which operators it has converters for; with `"engine": FILE` it builds too.
The compiler that it is in cannot be imported where there is no GPU. To be asked about operators it needs none, so for
the time of its import this process, and no other, says that there is one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.export import ExportedProgram

PACKAGES = ("torch-tensorrt", "torch-tensorrt-rtx")
"""Which have one module and one set of converters; the second is for TensorRT-RTX."""
SETTINGS: dict[str, Any] = {
    "min_block_size": 1,
    "disable_tf32": True,  # float32 is float32
    "attn_bias_is_causal": False,  # on by default it takes every mask for a triangle; chunks see whole chunks
    "offload_module_to_cpu": True,
}


def main() -> None:
    asked: dict[str, Any] = json.load(sys.stdin)
    if "engine" in asked and not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    try:
        with contextlib.nullcontext() if torch.cuda.is_available() else pretended():
            import torch_tensorrt  # noqa: F401
        found = support(read(asked["program"]))
        Path(asked["answer"]).write_text(json.dumps(found))
        if "engine" in asked and not found["missing"] and found["engines"] == 1:
            build(asked)
    except Exception as error:  # its own errors hold the whole graph
        said = next(iter(str(error).strip().splitlines()), "")
        sys.exit(f"{type(error).__name__}: {said[:300]}")


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """A GPU of compute capability 8.0, and none of the package's compiled parts, which load the GPU's libraries."""
    isfile = os.path.isfile

    def no_libraries(path: Any) -> bool:
        return "torchtrt" not in str(path) and isfile(path)

    with (
        mock.patch("torch.cuda.get_device_capability", return_value=(8, 0)),
        mock.patch("torch.cuda.current_device", return_value=0),
        mock.patch("torch._C._CudaDeviceProperties", object, create=True),  # named in an annotation
        mock.patch("os.path.isfile", no_libraries),
    ):
        yield


def read(file: str) -> ExportedProgram:
    """torch writes the range of a dimension that is a multiple, `2*s`, and takes it for a symbol when it reads it."""
    program = torch.export.load(file)
    for node in program.graph.nodes:
        mode = torch._guards.detect_fake_mode(node.meta.get("val"))
        if mode is not None and mode.shape_env is not None:
            ranges = mode.shape_env.var_to_range
            for no_symbol in [size for size in ranges if not size.is_Symbol]:
                del ranges[no_symbol]
            break
    return program


def settings() -> Any:
    from torch_tensorrt import Device
    from torch_tensorrt.dynamo._settings import CompilationSettings

    return CompilationSettings(device=Device(gpu_id=0), **SETTINGS)


def lowered(program: ExportedProgram) -> torch.fx.GraphModule:
    """The graph as the compiler makes it before it converts."""
    from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.lowering import get_decompositions, post_lowering, pre_export_lowering

    chosen = settings()
    DYNAMO_CONVERTERS.set_compilation_settings(chosen)
    decomposed = pre_export_lowering(program, chosen).run_decompositions(get_decompositions(False, False, False))
    return post_lowering(decomposed.module(), chosen)


def support(program: ExportedProgram) -> dict[str, Any]:
    """What `support.Support` holds.

    Counted here, over every node: its own report leaves out what the compiler takes for impure, such as attention.
    """
    from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.partitioning import fast_partition

    module = lowered(program)
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    missing = Counter(str(node.target) for node in calls if node not in DYNAMO_CONVERTERS)
    parts, _ = fast_partition(module, min_block_size=1, skip_fusion=not missing)
    engines = sum("_run_on_acc" in name for name, _ in parts.named_children())
    return {"by": package(), "operators": len(calls), "missing": dict(missing), "engines": engines}


def package() -> str:
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return "torch-tensorrt"


def inputs(asked: dict[str, Any]) -> list[Any]:
    """asked: `shapes`, of each input the least, usual and most sizes, and `dtypes`."""
    from torch_tensorrt import Input

    made = []
    for (least, usual, most), name in zip(asked["shapes"], asked["dtypes"], strict=True):
        dtype = getattr(torch, name)
        if least == most:
            made.append(Input(shape=usual, dtype=dtype))
        else:
            made.append(Input(min_shape=least, opt_shape=usual, max_shape=most, dtype=dtype))
    return made


def build(asked: dict[str, Any]) -> None:
    """The whole program as one engine. Never run by this project, which has had no GPU with TensorRT."""
    from torch_tensorrt import Device
    from torch_tensorrt.dynamo import convert_exported_program_to_serialized_trt_engine as convert

    engine = convert(
        read(asked["program"]),
        arg_inputs=inputs(asked),
        device=Device(gpu_id=torch.cuda.current_device()),
        require_full_compilation=True,
        enable_weight_streaming=asked["weight_streaming"],
        optimization_level=asked["optimization_level"],
        **SETTINGS,
    )
    Path(asked["engine"]).write_bytes(engine)


if __name__ == "__main__":
    main()
