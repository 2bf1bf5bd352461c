"""The core's own plugin: its methods come through the same door as everybody's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from .hookspecs import hookimpl
from .lazily import Lazily, place

if TYPE_CHECKING:
    from pathlib import Path

    from .export.backend import Exporter
    from .method import Method
    from .training.tracking import Tracker


@hookimpl
def flowmap_methods() -> Mapping[str, Callable[..., Method]]:
    return Lazily(
        {
            "anyflow_teacher": "flowmap.methods.anyflow:teacher",
            "anyflow_forward": "flowmap.methods.anyflow:forward",
            "anyflow_on_policy": "flowmap.methods.anyflow:on_policy",
            "finetune": "flowmap.methods.finetune:finetune",
            "flow_matching": "flowmap.methods.flow_matching:flow_matching",
            "improved_meanflow": "flowmap.methods.meanflow:improved",
            "meanflow": "flowmap.methods.meanflow:meanflow",
        }
    )


@hookimpl
def flowmap_exporters() -> Mapping[str, Exporter]:
    where = {
        "aoti": "aoti:Aoti",
        "onnx": "onnx:Onnx",
        "tensorrt": "tensorrt:TensorRt",
        "tensorrt-rtx": "tensorrt_rtx:TensorRtRtx",
        "torch-export": "torch_export:TorchExport",
    }
    return Lazily({name: partial(_made, f"flowmap.export.{path}") for name, path in where.items()})


@hookimpl
def flowmap_trackers() -> Mapping[str, Callable[[Path], Tracker]]:
    services = {"mlflow": "Mlflow", "trackio": "Trackio", "wandb": "Wandb"}
    own = {name: f"flowmap.training.services:{kind}" for name, kind in services.items()}
    return Lazily({"tensorboard": "flowmap.training.tensorboard:TensorBoard", **own})


def _made(path: str) -> Exporter:
    exporter: Exporter = place(path)()
    return exporter
