"""The core's own plugin: its methods come through the same door as everybody's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from .export.backend import Exporter
    from .method import Method
    from .training.tracking import Tracker


@hookimpl
def flowmap_methods() -> Mapping[str, Callable[..., Method]]:
    from .methods import anyflow, finetune, flow_matching, meanflow

    return {
        "anyflow_teacher": anyflow.teacher,
        "anyflow_forward": anyflow.forward,
        "anyflow_on_policy": anyflow.on_policy,
        "finetune": finetune.finetune,
        "flow_matching": flow_matching.flow_matching,
        "improved_meanflow": meanflow.improved,
        "meanflow": meanflow.meanflow,
    }


@hookimpl
def flowmap_exporters() -> Mapping[str, Exporter]:
    from .export.aoti import Aoti
    from .export.onnx import Onnx
    from .export.tensorrt import TensorRt
    from .export.tensorrt_rtx import TensorRtRtx
    from .export.torch_export import TorchExport

    return {
        "aoti": Aoti(),
        "onnx": Onnx(),
        "tensorrt": TensorRt(),
        "tensorrt-rtx": TensorRtRtx(),
        "torch-export": TorchExport(),
    }


@hookimpl
def flowmap_trackers() -> Mapping[str, Callable[[Path], Tracker]]:
    from .training.tensorboard import TensorBoard

    return {"tensorboard": TensorBoard}
