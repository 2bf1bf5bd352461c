"""How the bidirectional student of the family is exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import nn

from flowmap import FlowMap, Rng
from flowmap._types import Cond, Latent
from flowmap.export.graph import Graph, Input
from flowmap.export.runner import Checked, ExportedFlowMap, Transformer
from flowmap.export.spec import ShapeProfile

from .graph import POSITIONS, Attention, OneChunk
from .network import TIME_SCALE, Bidirectional, WanFlowMap

SIZES = ("batch", "frames", "height", "width", "text")
KEYS = ("in_channels", "out_channels", "patch_size", "num_attention_heads", "attention_head_dim", "num_layers", "eps")


@frozen
class OneChunkFamily:
    """Bidirectional: one graph, with the inputs of diffusers' `AnyFlowTransformer3DModel`.

    attention: one operator, or "explicit" for engines that do not have it.
    """

    attention: Attention = "sdpa"
    dims: tuple[str, ...] = SIZES

    def claims(self, u: FlowMap) -> bool:
        return isinstance(u, Bidirectional) and u.two_times

    def graphs(self, u: FlowMap) -> tuple[Graph, ...]:
        assert isinstance(u, WanFlowMap)
        c, f32, patch = int(u.net.config.in_channels), torch.float32, u.patch
        inputs = (
            Input("hidden_states", ("batch", "frames", c, "height", "width"), f32, "z"),
            Input("timestep", ("batch", "frames"), f32, "t", TIME_SCALE),
            Input("r_timestep", ("batch", "frames"), f32, "r", TIME_SCALE),
            text_input(u, "encoder_hidden_states"),
        )
        module = OneChunk(u, self.attention).eval()
        return (Graph("one_chunk", module, inputs, "velocity", *bounds(u, patch)),)

    def sizes(self, u: FlowMap) -> Mapping[str, int]:
        assert isinstance(u, WanFlowMap)
        return {"batch": 1, "text": u.text_length}

    def profile(self, u: FlowMap, asked: ShapeProfile) -> ShapeProfile:
        return asked

    def example(self, u: FlowMap, sizes: Mapping[str, int], rng: Rng) -> tuple[Latent, Cond]:
        assert isinstance(u, WanFlowMap)
        return example(u, sizes, rng)

    def config(self, u: FlowMap) -> Mapping[str, Any]:
        assert isinstance(u, WanFlowMap)
        return described(u)

    def runner(self, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> FlowMap:
        return ExportedFlowMap(calls["one_chunk"])

    def transformer(self, u: FlowMap, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> nn.Module:
        return Transformer(calls["one_chunk"], config)


def text_input(u: WanFlowMap, name: str) -> Input:
    return Input(name, ("batch", "text", int(u.net.config.text_dim)), torch.float32, "text", fill=True)


def bounds(u: WanFlowMap, patch: int) -> tuple[dict[str, int], dict[str, int]]:
    """What sizes must be multiples of, and what they are at most."""
    limits = {"frames": POSITIONS, "height": POSITIONS * patch, "width": POSITIONS * patch, "text": u.text_length}
    return {"height": patch, "width": patch}, limits


def example(u: WanFlowMap, sizes: Mapping[str, int], rng: Rng) -> tuple[Latent, Cond]:
    """Noise, and a text whose last position is padding."""
    shape = sizes["batch"], sizes["frames"], int(u.net.config.in_channels), sizes["height"], sizes["width"]
    device = u.net.patch_embedding.weight.device
    text = rng.fork(1).noise_like(torch.zeros(sizes["batch"], sizes["text"], int(u.net.config.text_dim), device=device))
    text[:, -1] = 0
    return rng.noise_like(torch.zeros(shape, device=device)), {"text": text}


def described(u: WanFlowMap) -> dict[str, Any]:
    """What a pipeline asks for, and what is a constant of the graphs: other weights fit where all this is the same."""
    config = {key: u.net.config[key] for key in KEYS}
    config |= {"gamma": u.gamma, "delta": u.delta, "text_length": u.text_length}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
