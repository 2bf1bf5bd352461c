"""Students whose every trained weight was moved, so that both times, every layer and every chunk matter."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from attrs import evolve
from flowmap_far import Far
from flowmap_far.export import FarFamily
from flowmap_wan.export import OneChunkFamily
from flowmap_wan.network import WanFlowMap
from flowmap_wan.spec import WanSpec
from flowmap_wan21 import Wan21
from torch.export import ExportedProgram

from flowmap import Rng
from flowmap.export.family import Family
from flowmap.export.graph import Call, Graph, program
from flowmap.export.manifest import Built
from flowmap.export.runner import Checked
from flowmap.export.spec import ShapeProfile
from flowmap.model import FlowMap

CPU, F32 = torch.device("cpu"), torch.float32
ONE, CAUSAL = Wan21(lora=None).tiny(), evolve(Far(lora=None).tiny(), partition=(1, 2, 1, 2, 1))
FIXED = ShapeProfile({"batch": 2, "frames": 3, "height": 4, "width": 6, "text": 16})
RANGES = ShapeProfile(
    {"batch": (1, 2, 3), "frames": (1, 3, 4), "height": (4, 4, 8), "width": (4, 6, 8), "text": (2, 9, 16)}
)
CAUSAL_FIXED = ShapeProfile({"batch": 1, "frames": 5, "height": 8, "width": 8, "text": 16})
"""With chunks of one frame each."""
CAUSAL_RANGES = ShapeProfile({"batch": (1, 2, 3), "frames": (7, 7, 9), "height": 8, "width": 8, "text": (2, 9, 16)})


def shaken(spec: WanSpec) -> WanFlowMap:
    student = spec.build(frozenset({"student"}), device=CPU, dtype=F32)["student"]
    assert isinstance(student, WanFlowMap)
    with torch.no_grad():
        for k, p in enumerate(student.trained().values()):
            p += 0.1 * Rng.seeded(5, k).noise_like(p)
    return student.eval().requires_grad_(False)


@cache
def student(kind: str) -> tuple[WanFlowMap, Family, ShapeProfile]:
    """By name: the network, its family, sizes."""
    match kind:
        case "fixed":
            return shaken(ONE), OneChunkFamily(), FIXED
        case "ranges":
            return shaken(ONE), OneChunkFamily(), RANGES
        case "causal fixed":
            return shaken(evolve(CAUSAL, partition=(1,) * 5)), FarFamily(), CAUSAL_FIXED
        case "causal small past":
            return shaken(evolve(CAUSAL, full=1)), FarFamily(), CAUSAL_RANGES
        case _:
            return shaken(CAUSAL), FarFamily(), CAUSAL_RANGES


KINDS = ("fixed", "ranges", "causal fixed", "causal ranges", "causal small past")
"""The last one has no finished chunk at full resolution, full = 1."""


@cache
def traced(kind: str) -> Mapping[str, tuple[Graph, ExportedProgram]]:
    """Its graphs by name, traced once for all tests: nobody changes a program."""
    u, family, asked = student(kind)
    profile = family.profile(u, asked)
    return {graph.name: (graph, program(graph, profile, F32, CPU)) for graph in family.graphs(u)}


def runner(kind: str, calls: Mapping[str, Call]) -> FlowMap:
    """The flow map that built graphs are, every call checked."""
    u, family, asked = student(kind)
    profile, checked = family.profile(u, asked), {}
    for graph in family.graphs(u):
        built = Built.of(graph, profile, "float32", graph.name)
        checked[graph.name] = Checked(built, calls[graph.name], CPU)
    return family.runner(checked, family.config(u))
