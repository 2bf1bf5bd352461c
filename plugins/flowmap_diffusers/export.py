"""How a student of a row is exported: one graph, u(z, t, r, *conditions), traced through the class of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import nn

from flowmap import FlowMap, Rng
from flowmap._types import Cond, Latent
from flowmap.export.graph import Graph, Input
from flowmap.export.plain import Call
from flowmap.export.runner import Checked, ExportedFlowMap
from flowmap.export.spec import ShapeProfile

from .network import DiffusersFlowMap
from .students import alone


@frozen
class RowFamily:
    """Sizes are of latents and tokens of text; times in [0, 1]. The conditions are of the shapes of training."""

    dims: tuple[str, ...] = ("batch", "frames", "height", "width", "text")

    def claims(self, u: FlowMap) -> bool:
        return isinstance(u, DiffusersFlowMap) and u.two_times and not u.row.causal

    def graphs(self, u: FlowMap) -> tuple[Graph, ...]:
        assert isinstance(u, DiffusersFlowMap)
        names, tokens, f32 = [name for name in u.shapes if name != "z"], u.shapes["text"][0], torch.float32
        inputs = (
            Input("z", ("batch", "frames", u.shapes["z"][1], "height", "width"), f32, "z"),
            Input("t", ("batch",), f32, "t"),
            Input("r", ("batch",), f32, "r"),
            *(Input(name, self._dims(u, name, tokens), _dtype(u, name), name) for name in names),
        )
        side = {"height": u.row.side, "width": u.row.side}
        return (Graph("one_chunk", Call(alone(u), tuple(names)).eval(), inputs, "u", side),)

    @staticmethod
    def _dims(u: DiffusersFlowMap, name: str, tokens: int) -> tuple[int | str, ...]:
        shape = u.shapes[name]
        if name in u.row.images and len(shape) == 4:  # latents, of all frames or of the first
            return ("batch", "frames" if name != u.row.held else 1, shape[1], "height", "width")
        return ("batch", *("text" if k == 0 and n == tokens else n for k, n in enumerate(shape)))

    def sizes(self, u: FlowMap) -> Mapping[str, int]:
        assert isinstance(u, DiffusersFlowMap)
        return {"batch": 1, "text": u.shapes["text"][0], **({"frames": 1} if u.row.image else {})}

    def profile(self, u: FlowMap, asked: ShapeProfile) -> ShapeProfile:
        return asked

    def example(self, u: FlowMap, sizes: Mapping[str, int], rng: Rng) -> tuple[Latent, Cond]:
        """Noise; masks of ones."""
        assert isinstance(u, DiffusersFlowMap)
        (graph,), device = self.graphs(u), next(u.net.parameters()).device
        made = {}
        for k, i in enumerate(graph.inputs):
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in i.dims)
            noise = rng.fork(k).noise_like(torch.zeros(shape, device=device))
            made[i.name] = noise if i.dtype == torch.float32 else torch.ones_like(noise, dtype=i.dtype)
        if "guidance" in made:
            made["guidance"] = torch.full_like(made["guidance"], 5.0)
        return made["z"], {name: value for name, value in made.items() if name not in ("z", "t", "r")}

    def config(self, u: FlowMap) -> Mapping[str, Any]:
        assert isinstance(u, DiffusersFlowMap)
        return {"transformer": u.row.transformer}

    def runner(self, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> FlowMap:
        return ExportedFlowMap(calls["one_chunk"])

    def transformer(self, u: FlowMap, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> nn.Module:
        return u


def _dtype(u: DiffusersFlowMap, name: str) -> torch.dtype:
    return torch.int64 if name in u.row.masks else torch.float32
