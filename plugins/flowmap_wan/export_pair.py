"""How a pair of experts is exported: a graph each, and the composition of what they became."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen
from torch import nn

from flowmap import FlowMap, Rng
from flowmap._types import Cond, Latent
from flowmap.experts import TwoExperts
from flowmap.export.graph import Graph
from flowmap.export.runner import Checked, ExportedFlowMap
from flowmap.export.spec import ShapeProfile

from .experts import PARTS
from .export import SIZES, OneChunkFamily


@frozen
class PairFamily:
    """Two graphs, `high` and `low`, with the same inputs; their grid has the boundary, which is in the config."""

    one: OneChunkFamily = OneChunkFamily()
    dims: tuple[str, ...] = SIZES

    def claims(self, u: FlowMap) -> bool:
        return isinstance(u, TwoExperts) and self.one.claims(u.high) and self.one.claims(u.low)

    def graphs(self, u: FlowMap) -> tuple[Graph, ...]:
        assert isinstance(u, TwoExperts)
        experts = zip(PARTS, (u.high, u.low), strict=True)
        return tuple(evolve(graph, name=name) for name, expert in experts for graph in self.one.graphs(expert))

    def sizes(self, u: FlowMap) -> Mapping[str, int]:
        return self.one.sizes(_low(u))

    def profile(self, u: FlowMap, asked: ShapeProfile) -> ShapeProfile:
        return self.one.profile(_low(u), asked)

    def example(self, u: FlowMap, sizes: Mapping[str, int], rng: Rng) -> tuple[Latent, Cond]:
        return self.one.example(_low(u), sizes, rng)

    def config(self, u: FlowMap) -> Mapping[str, Any]:
        return {**self.one.config(_low(u)), "boundary": u.boundary}

    def runner(self, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> FlowMap:
        high, low = (ExportedFlowMap(calls[name]) for name in PARTS)
        return TwoExperts(high, low, config["boundary"])

    def transformer(self, u: FlowMap, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> nn.Module:
        return u


def _low(u: FlowMap) -> FlowMap:
    assert isinstance(u, TwoExperts)
    return u.low
