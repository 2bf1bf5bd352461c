"""Wan2.1 text-to-video: the spec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen
from flowmap_wan.spec import WanSpec, example

if TYPE_CHECKING:
    import torch
    from flowmap_wan.network import WanFlowMap

    from flowmap._types import Cond, Latent, Role

HUB = re.compile(r"[\w.-]+/[\w.-]*(Wan2\.1-T2V|Wan2\.2-TI2V-5B|AnyFlow-Wan2\.1)[\w.-]*")

TWO = re.compile(r"[\w.-]+/[\w.-]*Wan2\.2-T2V-A14B[\w.-]*")
"""Hub ids of two experts."""


@frozen
class Wan21(WanSpec):
    __doc__ = WanSpec.__doc__

    transformers: ClassVar[tuple[str, ...]] = ("WanTransformer3DModel", "AnyFlowTransformer3DModel")
    pipelines: ClassVar[tuple[str, ...]] = ("WanPipeline", "AnyFlowPipeline")

    def student(self, net: Any, role: Role, **settings: Any) -> WanFlowMap:
        from flowmap_wan.network import Bidirectional

        return Bidirectional(net, role, **settings)

    def extra_config(self) -> Mapping[str, Any]:
        return {}

    def extra_state(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {}

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return example((batch, 3, 4, 4, 4), self.tiny().text_tokens)
