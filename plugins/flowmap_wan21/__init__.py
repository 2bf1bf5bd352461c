"""Wan2.1 text-to-video, bidirectional: the teacher is diffusers' `WanTransformer3DModel`, the student AnyFlow's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from flowmap import hookimpl, lazily

if TYPE_CHECKING:
    from flowmap_lora import Lora
    from flowmap_wan.pair import Experts

    from flowmap import FlowMapSpec
    from flowmap.export.family import Family
    from flowmap.published.layout import Layout

    from .spec import Wan21

__all__ = ["Experts", "Lora", "Wan21"]
__getattr__ = lazily.public(
    __name__, {"flowmap_lora": ["Lora"], "flowmap_wan.pair": ["Experts"], f"{__name__}.spec": ["Wan21"]}
)


@hookimpl
def flowmap_backbones() -> Mapping[str, FlowMapSpec]:
    from flowmap_wan.listed import FORMS

    sizes = {"wan21": "1.3B", "wan21_14b": "14B"}
    return lazily.Lazily({name: partial(_published, size) for name, size in sizes.items()}, dict.fromkeys(sizes, FORMS))


@hookimpl
def flowmap_graphs() -> Mapping[str, Family]:
    from flowmap_wan.export import OneChunkFamily
    from flowmap_wan.export_pair import PairFamily

    return {"wan": OneChunkFamily(), "wan_experts": PairFamily()}


@hookimpl
def flowmap_layouts() -> Mapping[str, Layout]:
    return lazily.Lazily({name: f"{__name__}.published:{name.upper()}" for name in ("wan", "anyflow_rl")})


@hookimpl
def flowmap_resolve_backbone(name: str) -> FlowMapSpec | None:
    from flowmap_wan import pair
    from flowmap_wan.spec import resolve

    from .spec import HUB, TWO, Wan21

    return pair.resolve(Wan21, name, TWO) or resolve(Wan21, name, Wan21.pipelines, HUB)


def _published(size: str) -> FlowMapSpec:
    from .spec import Wan21

    return Wan21(f"Wan-AI/Wan2.1-T2V-{size}-Diffusers")
