"""Engines of TensorRT-RTX in this process: read, given other weights, written. Needs a GPU; not yet run on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import BackendError


def engine(file: Path) -> Any:
    import tensorrt_rtx as trt

    found = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(file.read_bytes())
    if found is None:
        raise BackendError(f"tensorrt-rtx {trt.__version__} cannot read {file}: export again")
    return found


def refitted(file: Path, onnx: Path) -> Any:
    """The engine in `file` with the weights of the ONNX file that it was built from, which may have changed."""
    import tensorrt_rtx as trt

    found, logger = engine(file), trt.Logger(trt.Logger.ERROR)
    refitter = trt.Refitter(found, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)):
        said = "; ".join(str(parser.get_error(k)) for k in range(parser.num_errors))
        raise BackendError(f"tensorrt-rtx cannot refit {file} from {onnx.name}: {said or 'it does not say why'}")
    if missing := refitter.get_missing_weights():
        raise BackendError(f"tensorrt-rtx finds no {missing[0]!r} in {onnx.name}, which {file} needs: export again")
    if not refitter.refit_cuda_engine():
        raise BackendError(f"tensorrt-rtx cannot refit {file}: it does not say why")
    return found


def serialised(found: Any) -> bytes:
    """With its weights, to be refitted again."""
    import tensorrt_rtx as trt

    config = found.create_serialization_config()
    config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    return bytes(found.serialize_with_config(config))
