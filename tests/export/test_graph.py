"""The graphs: what they compute, at which sizes, and what is not in them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flowmap_far.export import FarFamily
from flowmap_wan.export import OneChunkFamily
from torch import Tensor, nn

from flowmap.export.errors import ExportError, LintError
from flowmap.export.graph import Graph, Input, lint, program
from flowmap.export.plain import Plain
from flowmap.export.spec import Range, ShapeProfile
from flowmap.export.verify import parity
from tests.export.students import CPU, F32, FIXED, KINDS, ONE, runner, student, traced


@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_graphs_compute_what_the_student_computes(kind: str, attention: str) -> None:
    u, family, asked = student(kind)
    form = type(family)(attention)  # type: ignore[call-arg]
    made = runner(kind, {graph.name: graph.module for graph in form.graphs(u)})
    found = parity(u, made, family, asked, "float32", (1, 3))
    assert found.worst.good, found.worst
    assert any("chunks" in m.what for m in found.measured) == kind.startswith("causal")


@pytest.mark.parametrize("kind", KINDS)
def test_traced_they_still_do_and_are_clean(kind: str) -> None:
    u, family, asked = student(kind)
    calls = {}
    for name, (_, made) in traced(kind).items():
        lint(made)
        calls[name] = made.module()
    found = parity(u, runner(kind, calls), family, asked, "float32", (1, 3))
    assert found.worst.good, found.worst


def test_each_range_is_a_symbol_and_nothing_else_was_assumed() -> None:
    _, program = traced("ranges")["one_chunk"]
    sizes = {str(n) for node in program.graph.nodes if node.op == "placeholder" for n in node.meta["val"].shape}
    assert sum(not size.isdecimal() for size in sizes) == 5
    program.module()(*(torch.zeros(1, 1, 4, 8, 8), torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 2, 16)))


def test_a_video_of_other_sizes_within_the_ranges() -> None:
    graph, program = traced("ranges")["one_chunk"]
    module = program.module()
    for b, f, h, w, n in ((1, 1, 4, 4, 2), (3, 4, 8, 8, 16), (1, 4, 4, 8, 15), (3, 1, 8, 4, 3)):
        args = torch.ones(b, f, 4, h, w), torch.full((b, f), 700.0), torch.full((b, f), 100.0), torch.ones(b, n, 16)
        torch.testing.assert_close(module(*args), graph.module(*args), atol=1e-6, rtol=1e-5)


def test_a_time_a_frame() -> None:
    """The first frame clean, as a pipeline that goes on from an image has it."""
    u, family, _ = student("fixed")
    (graph,) = family.graphs(u)
    z, c = ONE.example(2)
    t = torch.full((2, 3), 0.7)
    t[:, 0] = 0.0
    text = nn.functional.pad(c["text"], (0, 0, 0, 16 - c["text"].shape[1]))
    ours, theirs = graph.module(z, 1000 * t, 1000 * t, text), u(z, t, t, c)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(theirs, u(z, torch.full((2,), 0.7), torch.full((2,), 0.7), c), atol=1e-3)


class Odd(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def _scan(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


@pytest.mark.parametrize(
    "f, said",
    [
        (lambda x: torch.view_as_real(torch.view_as_complex(x)), "complex64"),
        (lambda x: (x.double() * 2).float(), "float64"),
        (_scan, "higher-order operator"),
    ],
    ids=["complex", "float64", "higher-order"],
)
def test_what_engines_refuse_is_named(f: Callable[[Tensor], Tensor], said: str) -> None:
    graph = Graph("odd", Odd(f), (Input("x", ("batch", 2), F32),), "y")
    with pytest.raises(LintError, match=said):
        lint(program(graph, ShapeProfile({"batch": 3}), F32, CPU))


def test_the_network_as_it_trains_would_not_pass() -> None:
    """Its rotary positions are made in float64, on every call."""
    u, _, _ = student("fixed")
    (graph,) = Plain(*ONE.example(2)).graphs(u)
    with pytest.raises(LintError, match="float64"):
        lint(program(graph, ShapeProfile({"batch": 2}), F32, CPU))


@pytest.mark.parametrize(
    "dims, said",
    [
        ({"height": 5}, "height = 5: must be multiples of 2"),
        ({"height": (4, 6, 7)}, "height = 4:6:7: must be multiples of 2"),
        ({"frames": 4000}, "frames = 4000: this network takes at most 1024"),
        ({"text": 17}, "text = 17: this network takes at most 16"),
        ({"batch": (1, 1, 1)}, None),
    ],
)
def test_sizes_that_cannot_be(dims: dict[str, int], said: str | None) -> None:
    u, family, _ = student("fixed")
    (graph,) = family.graphs(u)
    asked = ShapeProfile({**FIXED.dims, **dims})
    if said is None:
        graph.check(asked)
        return
    with pytest.raises(ExportError, match=said):
        graph.check(asked)


def test_ranges() -> None:
    assert Range.parse("8") == Range(8, 8, 8) and Range.parse("4:8:16") == Range(4, 8, 16)
    for text in ("", "0", "4:8", "8:4:16", "a", "-1"):
        with pytest.raises(ExportError):
            Range.parse(text)
    assert str(Range(4, 8, 16)) == "4:8:16" and str(Range(3, 3, 3)) == "3"


def test_a_teacher_is_no_student() -> None:
    teacher = ONE.build(frozenset({"teacher"}), device=CPU, dtype=F32)["teacher"]
    assert not OneChunkFamily().claims(teacher) and not FarFamily().claims(teacher)
