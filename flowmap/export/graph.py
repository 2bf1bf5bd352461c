"""A network as a function of tensors alone, traced by torch.export, and what inference engines would refuse in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, signature
from typing import Any, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .blank import without_sources
from .errors import ExportError, LintError, failing
from .spec import ShapeProfile

Call: TypeAlias = Callable[..., Tensor]
"""A built graph: tensors in the order of its inputs to its one output."""


@frozen
class Input:
    """A tensor that a graph is called with.

    dims: a size, or the name of a dimension that a `ShapeProfile` has a range for. dtype: None is that of the network.
    source: where a sampler finds it: "z", "t", "r", an entry of the condition, or nothing, where a family's own
    runner knows. scale: t and r in [0, 1] times this. fill: what is shorter than the least size along dimension 1 is
    filled with zeros up to there.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: torch.dtype | None = None
    source: str | None = None
    scale: float = 1.0
    fill: bool = False


@frozen(eq=False)
class Graph:
    """module: called with `inputs` by position; returns one tensor, `output`, in the first input's dtype.

    multiples: a dimension is a multiple of this. limits: and at most that.
    """

    name: str
    module: nn.Module
    inputs: tuple[Input, ...]
    output: str
    multiples: Mapping[str, int] = field(factory=dict)
    limits: Mapping[str, int] = field(factory=dict)

    @property
    def dims(self) -> tuple[str, ...]:
        """The named dimensions, in the order in which they first appear."""
        return tuple(dict.fromkeys(d for i in self.inputs for d in i.dims if isinstance(d, str)))

    def check(self, profile: ShapeProfile) -> None:
        if missing := [name for name in self.dims if name not in profile.dims]:
            raise ExportError(f"no size is given for {', '.join(missing)} of {self.name}")
        for name in self.dims:
            r, n, most = profile[name], self.multiples.get(name, 1), self.limits.get(name)
            if r.least % n or r.usual % n or r.most % n:
                raise ExportError(f"{name} = {r}: must be multiples of {n}")
            if not r.fixed and r.most < 2 * n:
                raise ExportError(f"{name} = {r}: a range must reach {2 * n} at least")
            if not r.fixed and 1 < n == r.least:
                raise ExportError(
                    f"{name} = {r}: the tracer takes one patch, {n}, for a constant: start the range at {2 * n}, or "
                    f"export {name} = {n} for itself"
                )
            if most is not None and r.most > most:
                raise ExportError(f"{name} = {r}: this network takes at most {most}")


def example(graph: Graph, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Arguments of those sizes, all zeros: a tracer does not look at values."""
    shapes = (tuple(sizes[d] if isinstance(d, str) else d for d in i.dims) for i in graph.inputs)
    return tuple(
        torch.zeros(shape, dtype=i.dtype or dtype, device=device) for i, shape in zip(graph.inputs, shapes, strict=True)
    )


def program(graph: Graph, profile: ShapeProfile, dtype: torch.dtype, device: torch.device) -> ExportedProgram:
    """`graph` traced at the usual sizes, dynamic where the profile has a range.

    A dimension of 1 is taken for a constant by the tracer, so that a dynamic one is traced at 2 or more.
    """
    graph.check(profile)
    sizes, dims = {}, {}
    for name in graph.dims:
        r, n = profile[name], graph.multiples.get(name, 1)
        sizes[name] = r.usual
        if not r.fixed:
            sizes[name] = max(r.usual, 2 * n)
            base = Dim(f"{name}_" if n == 1 else f"{name}_{n}", min=max(1, r.least // n), max=r.most // n)
            dims[name] = base if n == 1 else n * base
    args = example(graph, sizes, dtype, device)
    shapes: tuple[Any, ...] = tuple({k: dims[d] for k, d in enumerate(i.dims) if d in dims} for i in graph.inputs)
    kinds = [p.kind for p in signature(graph.module.forward).parameters.values()]
    k = kinds.index(Parameter.VAR_POSITIONAL) if Parameter.VAR_POSITIONAL in kinds else len(shapes)
    if shapes[k:]:  # such arguments are one tuple to the tracer, and nothing where there are none
        shapes = (*shapes[:k], shapes[k:])
    with torch.no_grad(), failing(f"{graph.name!r} cannot be traced"):
        made = torch.export.export(graph.module, args, dynamic_shapes=shapes if dims else None, strict=False)
    return without_sources(made)


def values(program: ExportedProgram) -> Iterator[tuple[str, torch.dtype]]:
    """Every tensor that the program holds or makes: where from, and its type."""
    for name, held in {**program.state_dict, **program.constants}.items():
        if isinstance(held, Tensor):
            yield name, held.dtype
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            made = node.meta.get("val")
            for value in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(value, Tensor):
                    yield f"{node.name} ({node.target})", value.dtype


def lint(program: ExportedProgram) -> None:
    """No complex numbers, no float64, no operator that holds a graph of its own: a `LintError` that names one."""
    for where, dtype in values(program):
        if dtype.is_complex or dtype == torch.float64:
            raise LintError(f"the graph has a {str(dtype).removeprefix('torch.')} tensor: {where}")
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                raise LintError(f"the graph has a higher-order operator: {node.name} ({node.target})")


PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention")


def require_precision(program: ExportedProgram, dtype: torch.dtype) -> None:
    """An `ExportError` where products of matrices are not of `dtype`: what was asked for is not what the network does.

    Nothing may be narrower than float32 where that is asked for. A narrow network keeps a few exact, such as those that
    embed the times: there most must be of `dtype`.
    """
    found: Counter[torch.dtype] = Counter()
    for node in program.graph_module.graph.nodes:
        made = node.meta.get("val")
        if isinstance(made, Tensor) and getattr(node.target, "__name__", "").partition(".")[0] in PRODUCTS:
            found[made.dtype] += 1
    exact = dtype == torch.float32 and any(other.itemsize < dtype.itemsize for other in found)
    if exact or (found and max(found, key=found.__getitem__) != dtype):
        own = ", ".join(sorted(str(d).removeprefix("torch.") for d in found))
        raise ExportError(
            f"precision = {str(dtype).removeprefix('torch.')}, and the network that was given computes in {own}: build "
            "it in that precision, or give its directory"
        )
