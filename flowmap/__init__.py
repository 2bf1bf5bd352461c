"""flowmap: distil a flow-matching diffusion model into one that samples in any number of steps."""

from __future__ import annotations

from ._types import Batch, Rng
from .data import TensorData, VideoFolder
from .distill import distill
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
    "ModuleSpec",
    "Recipe",
    "Rng",
    "Stage",
    "TensorData",
    "VideoFolder",
    "backbone",
    "distill",
    "hookimpl",
    "load",
    "sample",
    "stream",
]
