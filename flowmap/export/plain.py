"""Any network that makes all frames at once, exported as it is: u(z, t, r, *conditions)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from .._types import Cond, Latent, Rng, Time
from ..model import FlowMap
from .graph import Graph, Input
from .runner import Checked, ExportedFlowMap
from .spec import ShapeProfile


@frozen(eq=False)
class Plain:
    """Like the examples z and cond in every dimension but the batch."""

    z: Latent | None = None
    cond: Cond | None = None
    dims: tuple[str, ...] = ("batch",)

    def claims(self, u: FlowMap) -> bool:
        return False  # for those that say so by giving an example

    def graphs(self, u: FlowMap) -> tuple[Graph, ...]:
        z, cond = self._examples()
        inputs = (
            Input("z", ("batch", *z.shape[1:]), torch.float32, "z"),
            Input("t", ("batch",), torch.float32, "t"),
            Input("r", ("batch",), torch.float32, "r"),
            *(Input(name, ("batch", *value.shape[1:]), value.dtype, name) for name, value in cond.items()),
        )
        return (Graph("one_chunk", Call(u, tuple(cond)), inputs, "u"),)

    def sizes(self, u: FlowMap) -> Mapping[str, int]:
        return {"batch": 1}

    def profile(self, u: FlowMap, asked: ShapeProfile) -> ShapeProfile:
        return asked

    def example(self, u: FlowMap, sizes: Mapping[str, int], rng: Rng) -> tuple[Latent, Cond]:
        """The examples again, over and over; noise in place of z."""
        z, cond = self._examples()
        rows = torch.arange(sizes["batch"]) % len(z)
        return rng.noise_like(z[rows]), {name: value[rows] for name, value in cond.items()}

    def config(self, u: FlowMap) -> Mapping[str, Any]:
        return {}

    def runner(self, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> FlowMap:
        return ExportedFlowMap(calls["one_chunk"])

    def transformer(self, u: FlowMap, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> nn.Module:
        return u

    def _examples(self) -> tuple[Latent, Cond]:
        assert self.z is not None
        return self.z, self.cond or {}


class Call(nn.Module):
    """`u` with its condition as arguments."""

    def __init__(self, u: FlowMap, names: tuple[str, ...]) -> None:
        super().__init__()
        self.u, self.names = u, names

    def forward(self, z: Latent, t: Time, r: Time, *cond: Tensor) -> Latent:
        return self.u(z, t, r, dict(zip(self.names, cond, strict=True)))
