"""What an export would be, without weights: the graphs of a network of any size, traced on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.export import ExportedProgram

from ..doing import tell
from ..model import FlowMapSpec
from ..plugins import backbone, installed, named
from . import forms, listed
from .errors import BackendError, ExportError, MissingPackageError
from .graph import lint, program
from .spec import DTYPES, Precision, ShapeProfile
from .student import Sizes, check_sizes, family_of, known_sizes
from .support import Foresees, Support

META = torch.device("meta")


@frozen
class GraphPlan:
    """weights: bytes. activations: bytes that are alive at once at the usual sizes where nothing is fused, so that an
    engine needs less; attention is one operator, which is taken to keep no logits. support: what a back end can take of
    it, or why that is not known; None where no back end was named."""

    name: str
    nodes: int
    operators: Mapping[str, int]
    weights: int
    activations: int
    support: Support | str | None = None


def plan(
    name: str | FlowMapSpec,
    *,
    to: str | None = None,
    sizes: Sizes | None = None,
    precision: Precision = "float32",
    pm: Any = None,
) -> tuple[GraphPlan, ...]:
    """The graphs of a backbone's student, clean or a `LintError`; name: as for `flowmap.backbone`, a run, or a spec.

    to: the back end that is asked which operators it can take. sizes: as for an export, those of training by default.
    """
    pm = pm or installed()
    if to in listed.names(pm):
        raise ExportError(f"{to} writes files and no graph: there is nothing to plan")
    exporter = None if to is None else named(pm, "flowmap_exporters", to)
    spec, facts = (name, {}) if isinstance(name, FlowMapSpec) else _found(name, pm)
    u = spec.outline().build(frozenset({"student"}), device=META, dtype=DTYPES[precision])["student"].eval()
    _, family = family_of(u, None, pm)
    asked = ShapeProfile({**known_sizes(family, u, facts), **(sizes or {})})
    graphs = family.graphs(u)
    check_sizes(family, u, asked, graphs)
    planned = []
    for graph in graphs:
        tell(f"tracing {graph.name!r}")
        traced = program(graph, family.profile(u, asked), DTYPES[precision], META)
        found = measured(graph.name, traced)
        planned.append(found if to is None else evolve(found, support=supported(to, exporter, traced)))
    return tuple(planned)


def _found(name: str, pm: Any) -> tuple[FlowMapSpec, dict[str, Any]]:
    """The backbone, and what `distill` wrote beside it, if it did."""
    folder = forms.located(Path(name)) if Path(name).is_dir() else None
    return backbone(name if folder is None else str(folder), pm), forms.facts(folder)


def supported(to: str, exporter: object, traced: ExportedProgram) -> Support | str:
    if not isinstance(exporter, Foresees):
        return f"{to} says it while it builds"
    try:
        return exporter.supports(traced)
    except (MissingPackageError, BackendError) as error:
        return str(error)


def measured(name: str, traced: ExportedProgram) -> GraphPlan:
    lint(traced)
    operators = Counter(str(n.target) for n in traced.graph.nodes if n.op == "call_function")
    weights = sum(_bytes(value) for value in {**traced.state_dict, **traced.constants}.values())
    return GraphPlan(name, len(traced.graph.nodes), dict(operators.most_common()), weights, alive(traced))


def alive(traced: ExportedProgram) -> int:
    """The most bytes of what operators make that are still to be read, one operator after the other."""
    nodes = list(traced.graph.nodes)
    last = {used: k for k, node in enumerate(nodes) for used in node.all_input_nodes}
    owner: dict[torch.fx.Node, torch.fx.Node] = {}  # a view holds what it is a view of
    most, now = 0, 0
    leaving: dict[int, int] = {}
    for node in nodes:
        made = node.meta.get("val")
        if node.op == "call_function" and isinstance(made, Tensor) and _views(node):
            owner[node] = owner.get(node.all_input_nodes[0], node.all_input_nodes[0])
    ends = dict(last)
    for node, of in owner.items():
        ends[of] = max(ends.get(of, 0), last.get(node, 0))
    for k, node in enumerate(nodes):
        if node.op == "call_function" and node not in owner:
            size = _bytes(node.meta.get("val"))
            now += size
            end = ends.get(node, k)
            leaving[end] = leaving.get(end, 0) + size
        most = max(most, now)
        now -= leaving.get(k, 0)
    return most


def _views(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _bytes(value: object) -> int:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return sum(_size(v) for v in values if isinstance(v, Tensor))


def _size(value: Tensor) -> int:
    numbers = [n if isinstance(n, int) else n.node.hint for n in value.shape]
    if any(n is None for n in numbers):
        raise ExportError("a size of the graph is not known at the usual sizes")
    total = value.element_size()
    for n in numbers:
        total *= int(n)
    return total
