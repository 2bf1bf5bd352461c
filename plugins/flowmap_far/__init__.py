"""FAR on Wan2.1: a student that makes a video chunk after chunk, from a prompt, an image or the start of a video."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flowmap import hookimpl, lazily
from flowmap.mistaken import INDEX, read

if TYPE_CHECKING:
    from flowmap_lora import Lora

    from flowmap import FlowMapSpec
    from flowmap.export.family import Family
    from flowmap.published.layout import Layout

    from .spec import Far

__all__ = ["Far", "Lora"]
__getattr__ = lazily.public(__name__, {"flowmap_lora": ["Lora"], f"{__name__}.spec": ["Far"]})


@hookimpl
def flowmap_backbones() -> Mapping[str, FlowMapSpec]:
    from flowmap_wan.listed import FORMS

    sizes = {"far": "1.3B", "far_14b": "14B"}
    return lazily.Lazily({name: partial(_published, size) for name, size in sizes.items()}, dict.fromkeys(sizes, FORMS))


@hookimpl
def flowmap_graphs() -> Mapping[str, Family]:
    from .export import FarFamily

    return {"far": FarFamily()}


@hookimpl
def flowmap_layouts() -> Mapping[str, Layout]:
    causal_forcing = ("causal_forcing", "causal_forcing_framewise")
    names = ("self_forcing", *causal_forcing, "krea_realtime", "causvid", "lightx2v_causvid", "fastvideo_causalwan")
    return lazily.Lazily({name: f"{__name__}.published:{name.upper()}" for name in names})


@hookimpl
def flowmap_resolve_backbone(name: str) -> FlowMapSpec | None:
    from flowmap_wan.spec import resolve

    from .experts import PIPELINE, CausalExperts
    from .spec import HUB, Far

    if (Path(name) / INDEX).is_file() and read(Path(name) / INDEX).get("_class_name") == PIPELINE:
        return CausalExperts(name)
    return resolve(Far, name, Far.pipelines[-1:], HUB)


def _published(size: str) -> FlowMapSpec:
    from .spec import Far

    return Far(f"Wan-AI/Wan2.1-T2V-{size}-Diffusers")
