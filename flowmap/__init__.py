"""flowmap: distil a flow-matching diffusion model into one that samples in any number of steps.

A public name is imported when it is first asked for, so that what needs no network (`flowmap --help`, a list of names)
loads no torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import lazily

if TYPE_CHECKING:
    from ._types import Batch, Rng
    from .adamw8bit import AdamW8bit
    from .data import LatentFolder, Mixed, TensorData, VideoFolder
    from .distill import distill
    from .export.api import export
    from .hookspecs import hookimpl
    from .kernels import Kernels
    from .model import FlowMap, FlowMapSpec
    from .module import ModuleSpec
    from .muon import Muon
    from .plugins import backbone, load
    from .recipe import AdamW, Ema, Recipe, Stage
    from .rollout import sample
    from .stream import stream
    from .window import Window

__version__ = "0.1.0"
__all__ = [
    "AdamW",
    "AdamW8bit",
    "Batch",
    "Ema",
    "FlowMap",
    "FlowMapSpec",
    "Kernels",
    "LatentFolder",
    "Mixed",
    "ModuleSpec",
    "Muon",
    "Recipe",
    "Rng",
    "Stage",
    "TensorData",
    "VideoFolder",
    "Window",
    "backbone",
    "distill",
    "export",
    "hookimpl",
    "load",
    "sample",
    "stream",
]

_MODULES = {
    "_types": ("Batch", "Rng"),
    "data": ("LatentFolder", "Mixed", "TensorData", "VideoFolder"),
    "distill": ("distill",),
    "export.api": ("export",),
    "hookspecs": ("hookimpl",),
    "kernels": ("Kernels",),
    "model": ("FlowMap", "FlowMapSpec"),
    "module": ("ModuleSpec",),
    "muon": ("Muon",),
    "plugins": ("backbone", "load"),
    "adamw8bit": ("AdamW8bit",),
    "recipe": ("AdamW", "Ema", "Recipe", "Stage"),
    "rollout": ("sample",),
    "stream": ("stream",),
    "window": ("Window",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = lazily.place(f"{__name__}.{_WHERE[name]}:{name}")
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`distill`, `export` and `stream` are functions: their files, which Python would bind to these names, are not."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
