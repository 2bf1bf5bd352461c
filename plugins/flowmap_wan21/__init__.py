"""Wan2.1 text-to-video, bidirectional: the teacher is diffusers' `WanTransformer3DModel`, the student AnyFlow's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowmap_wan import Lora
from flowmap_wan.spec import resolve

from flowmap import hookimpl

from .spec import HUB, Wan21

if TYPE_CHECKING:
    from flowmap import FlowMapSpec
    from flowmap.export.family import Family

__all__ = ["Lora", "Wan21"]


@hookimpl
def flowmap_backbones() -> Mapping[str, FlowMapSpec]:
    return {
        "wan21": Wan21("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        "wan21_14b": Wan21("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    }


@hookimpl
def flowmap_graphs() -> Mapping[str, Family]:
    from flowmap_wan.export import OneChunkFamily

    return {"wan": OneChunkFamily()}


@hookimpl
def flowmap_resolve_backbone(name: str) -> FlowMapSpec | None:
    return resolve(Wan21, name, Wan21.pipelines, HUB)
