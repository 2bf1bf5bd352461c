"""flowmap: distil a flow-matching diffusion model into one that samples in any number of steps."""

from __future__ import annotations

from ._types import Batch, Rng
from .data import LatentFolder, TensorData, VideoFolder
from .distill import distill
from .export.api import export
from .hookspecs import hookimpl
from .model import FlowMap, FlowMapSpec
from .module import ModuleSpec
from .plugins import backbone, load
from .recipe import AdamW, Ema, Recipe, Stage
from .rollout import sample
from .stream import stream

__version__ = "0.1.0"
__all__ = [
    "AdamW",
    "Batch",
    "Ema",
    "FlowMap",
    "FlowMapSpec",
    "LatentFolder",
    "ModuleSpec",
    "Recipe",
    "Rng",
    "Stage",
    "TensorData",
    "VideoFolder",
    "backbone",
    "distill",
    "export",
    "hookimpl",
    "load",
    "sample",
    "stream",
]
