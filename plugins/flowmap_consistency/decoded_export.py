"""A student with heads for other programs: heads fused for a schedule, and graphs of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from flowmap import FlowMap
from flowmap.export.errors import ExportError
from flowmap.export.forms import FACTS, Written
from flowmap.export.graph import Graph
from flowmap.export.student import family_of
from flowmap.model import sha256
from flowmap.plugins import collect, installed
from flowmap.times import euler_grid

from . import heads_file
from .decoder import SLACK, Decoder, last_linear, mixture, with_heads

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap._types import Cond, Latent, Rng
    from flowmap.export.family import Family
    from flowmap.export.forms import Saved
    from flowmap.export.runner import Checked
    from flowmap.export.spec import Asked, ShapeProfile


@frozen
class FusedHeads:
    """`fused-heads`: the student's directory with one head a step, right for one number of steps; it is sampled, and
    exported to a graph, as any student is.

    Options: steps (4).
    """

    def check(self, student: Saved, asked: Asked) -> None:
        asked.known("fused-heads", ["steps"])
        self._times(student, asked)

    @torch.no_grad()
    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        times = self._times(student, asked)
        u = student.spec.load(student.folder, device=torch.device("cpu"), dtype=torch.float32)
        assert isinstance(u, Decoder)
        made = u.fused(times)
        shutil.copytree(
            student.folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md", heads_file.FILE)
        )
        heads_file.write(made, student.spec.shift, out / heads_file.FILE)
        told = {**student.facts, "times": times[:-1]}
        (out / FACTS).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
        (out / "README.txt").write_text(
            f"A student whose heads are fused for {len(times) - 1} steps, t = {', '.join(f'{t:g}' for t in times)}.\n"
            "flowmap.sample and `flowmap sample` take these by default; other steps are between its heads.\n"
        )
        sampler = {**student.sampler, "times": times[:-1], "steps": [len(times) - 1]}
        return Written(sha256(made.bank.state_dict()), sampler)

    def _times(self, student: Saved, asked: Asked) -> list[float]:
        """The schedule; an `ExportError` where its steps end between points of the grid."""
        steps = asked.options.get("steps", 4)
        if not isinstance(steps, int) or steps < 1:
            raise ExportError(f"steps = {steps!r}: must be a whole number, at least 1")
        own = torch.tensor(heads_file.told(student.folder)["times"])
        wanted = euler_grid(steps, student.spec.shift)
        nearest = own[(own[None] - wanted[:, None]).abs().argmin(1)]
        if (off := float((nearest - wanted).abs().max())) > SLACK:
            raise ExportError(
                f"steps = {steps}: its steps end up to {off:.2g} beside points of the grid of {len(own) - 1} heads: "
                f"must divide {len(own) - 1}"
            )
        found: list[float] = nearest.tolist()
        return found


@frozen
class DecodedFamily:
    """The graph of what is below the heads, which are mixed in it: the family of the network itself does the rest."""

    dims: tuple[str, ...] = ("batch", "frames", "height", "width", "text")

    def claims(self, u: FlowMap) -> bool:
        return isinstance(u, Decoder)

    def graphs(self, u: FlowMap) -> tuple[Graph, ...]:
        assert isinstance(u, Decoder)
        (graph, *more) = _of(u)[1].graphs(u.u)
        sources = [i.source for i in graph.inputs]
        if more or not {"t", "r"} <= {*sources}:
            raise ExportError(
                f"a {type(u.u).__name__} with heads has no graph of one call: must make all frames at once"
            )
        t, r = sources.index("t"), sources.index("r")
        return (evolve(graph, module=Mixed(graph.module, u, t, r, graph.inputs[t].scale)),)

    def sizes(self, u: FlowMap) -> Mapping[str, int]:
        return _of(u)[1].sizes(_inner(u))

    def profile(self, u: FlowMap, asked: ShapeProfile) -> ShapeProfile:
        return _of(u)[1].profile(_inner(u), asked)

    def example(self, u: FlowMap, sizes: Mapping[str, int], rng: Rng) -> tuple[Latent, Cond]:
        return _of(u)[1].example(_inner(u), sizes, rng)

    def config(self, u: FlowMap) -> Mapping[str, Any]:
        assert isinstance(u, Decoder)
        name, family = _of(u)
        return {"below": name, "heads": u.times.tolist(), **family.config(u.u)}

    def runner(self, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> FlowMap:
        return _named(config).runner(calls, config)

    def transformer(self, u: FlowMap, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> nn.Module:
        return _named(config).transformer(u, calls, config)


class Mixed(nn.Module):
    """The graph's module, told t twice, with the mean velocity of [r, t] mixed of the heads at its last layer."""

    times: Tensor

    def __init__(self, module: nn.Module, u: Decoder, t: int, r: int, scale: float) -> None:
        super().__init__()
        self.module, self.bank, self.t, self.r, self.scale = module, u.bank, t, r, scale
        self.layer = last_linear(module)
        self.register_buffer("times", u.times.clone().to(u.bank.weight.device))
        self.requires_grad_(False)

    def forward(self, *given: Tensor) -> Tensor:
        t, r = (given[i].reshape(len(given[i]), -1)[:, 0] / self.scale for i in (self.t, self.r))
        mix = mixture(self.times, t, r)
        told = [given[self.t] if i == self.r else a for i, a in enumerate(given)]
        with with_heads(self.module, self.layer, self.bank, mix):
            out: Tensor = self.module(*told)
        return out


def _inner(u: FlowMap) -> FlowMap:
    assert isinstance(u, Decoder)
    return u.u


def _of(u: FlowMap) -> tuple[str, Family]:
    return family_of(_inner(u), None, installed())


def _named(config: Mapping[str, Any]) -> Family:
    family: Family = collect(installed(), "flowmap_graphs")[config["below"]]
    return family
