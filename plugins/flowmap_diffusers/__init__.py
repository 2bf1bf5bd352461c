"""Any diffusers transformer as a backbone: one adapter, and a row a class in `rows`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from flowmap import hookimpl, lazily

if TYPE_CHECKING:
    from flowmap import FlowMapSpec
    from flowmap.export.family import Family

    from . import layout
    from .row import Call, Row
    from .spec import Diffusers

__all__ = ["Call", "Diffusers", "Row", "layout"]
__getattr__ = lazily.public(__name__, {f"{__name__}.row": ["Call", "Row"], f"{__name__}.spec": ["Diffusers"]})
FORMS = ("fixed-steps", "lora")
"""Of `Diffusers.forms`, for a list that loads no network."""
LATENTS_ONLY = ("magi", "step_video")
"""Rows that have none of them."""


@hookimpl
def flowmap_backbones() -> Mapping[str, FlowMapSpec]:
    from .rows import here, names

    forms = dict.fromkeys(here(), FORMS) | dict.fromkeys(LATENTS_ONLY, ())
    return lazily.Lazily({name: partial(_published, name) for name in names()}, forms)


@hookimpl
def flowmap_graphs() -> Mapping[str, Family]:
    from .export import RowFamily

    return {"diffusers": RowFamily()}


@hookimpl(trylast=True)  # a name of the hub may have to be asked for there
def flowmap_resolve_backbone(name: str) -> FlowMapSpec | None:
    from .spec import resolve

    return resolve(name)


def _published(family: str) -> FlowMapSpec:
    from .rows import ROWS
    from .spec import Diffusers

    return Diffusers(ROWS[family].hub, family=family)
