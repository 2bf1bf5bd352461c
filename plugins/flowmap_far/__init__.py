"""FAR on Wan2.1: a student that makes a video chunk after chunk, from a prompt, an image or the start of a video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowmap_wan import Lora
from flowmap_wan.spec import resolve

from flowmap import hookimpl

from .spec import HUB, Far

if TYPE_CHECKING:
    from flowmap import FlowMapSpec
    from flowmap.export.family import Family
    from flowmap.published.layout import Layout

__all__ = ["Far", "Lora"]


@hookimpl
def flowmap_backbones() -> Mapping[str, FlowMapSpec]:
    return {
        "far": Far("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        "far_14b": Far("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    }


@hookimpl
def flowmap_graphs() -> Mapping[str, Family]:
    from .export import FarFamily

    return {"far": FarFamily()}


@hookimpl
def flowmap_layouts() -> Mapping[str, Layout]:
    from .published import PUBLISHED

    return PUBLISHED


@hookimpl
def flowmap_resolve_backbone(name: str) -> FlowMapSpec | None:
    return resolve(Far, name, Far.pipelines[-1:], HUB)
