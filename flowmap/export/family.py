"""What the networks of a plugin are to an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from .._types import Cond, Latent, Rng
from ..model import FlowMap
from .graph import Graph
from .runner import Checked
from .spec import ShapeProfile


class Family(Protocol):
    """How a kind of network is exported and used again; plugins register them by name (`flowmap_graphs`)."""

    @property
    def dims(self) -> tuple[str, ...]:
        """The sizes that people ask for, such as batch, frames, height, width, text."""

    def claims(self, u: FlowMap) -> bool:
        """Whether `u` is of this kind."""

    def graphs(self, u: FlowMap) -> tuple[Graph, ...]:
        """Its graphs, adapters fused in."""

    def sizes(self, u: FlowMap) -> Mapping[str, int]:
        """The dimensions that have a size of their own, where none is asked for."""

    def profile(self, u: FlowMap, asked: ShapeProfile) -> ShapeProfile:
        """The dimensions of the graphs, from the `dims` that were asked for."""

    def example(self, u: FlowMap, sizes: Mapping[str, int], rng: Rng) -> tuple[Latent, Cond]:
        """Noise and a condition of those sizes, for the student and its export to be compared on."""

    def config(self, u: FlowMap) -> Mapping[str, Any]:
        """What the runner, and a pipeline, must know of the network; JSON."""

    def runner(self, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> FlowMap:
        """The flow map that the built graphs are."""

    def transformer(self, u: FlowMap, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> nn.Module:
        """What the runner `u` is in a pipeline of diffusers; `u` itself, where there is none."""
