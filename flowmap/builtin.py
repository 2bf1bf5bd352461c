"""The core's own plugin: its methods come through the same door as everybody's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from .method import Method


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
