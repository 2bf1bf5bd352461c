"""Any diffusers transformer as a backbone: one adapter, and a row a class in `rows`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowmap import hookimpl

from . import layout
from .row import Call, Row
from .spec import Diffusers, resolve

if TYPE_CHECKING:
    from flowmap import FlowMapSpec
    from flowmap.export.family import Family

__all__ = ["Call", "Diffusers", "Row", "layout"]


@hookimpl
def flowmap_backbones() -> Mapping[str, FlowMapSpec]:
    from .rows import ROWS

    return {name: Diffusers(row.hub, family=name) for name, row in ROWS.items()}


@hookimpl
def flowmap_graphs() -> Mapping[str, Family]:
    from .export import RowFamily

    return {"diffusers": RowFamily()}


@hookimpl(trylast=True)  # a name of the hub may have to be asked for there
def flowmap_resolve_backbone(name: str) -> FlowMapSpec | None:
    return resolve(name)
