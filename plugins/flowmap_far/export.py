"""How the causal student is exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from flowmap_wan.export import SIZES, bounds, described, example, text_input
from flowmap_wan.graph import Attention
from flowmap_wan.network import TIME_SCALE
from torch import nn

from flowmap import FlowMap, Rng
from flowmap._types import Cond, Latent
from flowmap.export.graph import Graph, Input
from flowmap.export.runner import Checked
from flowmap.export.spec import Range, ShapeProfile

from .graph import Compress, CompressAlone, Encode, Step
from .network import FarFlowMap
from .runner import ExportedFar, FarTransformer

LEAST = 2
"""Places in the history of a graph that takes any number of them: a tracer takes 0 and 1 for constants."""


@frozen
class FarFamily:
    """Three graphs: `step`, `encode` for a finished chunk, `compress` for when one leaves full resolution.

    Where a chunk leaves as soon as it is finished, full = 1, two: there is nothing to encode at full resolution.
    """

    attention: Attention = "sdpa"
    dims: tuple[str, ...] = SIZES

    def claims(self, u: FlowMap) -> bool:
        return isinstance(u, FarFlowMap) and u.two_times

    def graphs(self, u: FlowMap) -> tuple[Graph, ...]:
        assert isinstance(u, FarFlowMap)
        net, f32, i64 = u.net, torch.float32, torch.int64
        c, text = int(net.config.in_channels), text_input(u, "encoder_hidden_states")
        heads, dim = int(net.config.num_attention_heads), int(net.config.attention_head_dim)
        kv = Input("kv", (len(net.blocks), 2, "batch", "past", heads, dim))
        past = Input("past", ("past",), i64)

        def latent(name: str, frames: str) -> Input:
            return Input(name, ("batch", frames, c, "height", "width"), f32)

        times = (
            Input("timestep", ("batch", "chunk"), f32, "t", TIME_SCALE),
            Input("r_timestep", ("batch", "chunk"), f32, "r", TIME_SCALE),
        )
        x, at = latent("hidden_states", "chunk"), Input("positions", ("chunk",), i64)
        old, recent = latent("old", "old"), latent("recent", "recent")
        ids = [
            Input(f"{prefix}{name}", (dim,), i64)
            for name in ("positions", "chunk")
            for prefix, dim in (("old_", "old"), ("", "recent"))
        ]
        multiples, limits = bounds(u, u.patch)
        limits = {name: n for name, n in limits.items() if name != "frames"}
        finished = (x, text, kv, past, at)

        def graph(name: str, module: nn.Module, inputs: Sequence[Input], output: str = "memory") -> Graph:
            return Graph(name, module.eval(), tuple(inputs), output, multiples, limits)

        step = graph("step", Step(u, self.attention), (x, *times, text, kv, past, at), "velocity")
        if u.full == 1:
            return step, graph("compress", CompressAlone(u, self.attention), finished)
        encode = graph("encode", Encode(u, self.attention), finished)
        compress = Compress(u, self.attention)
        return step, encode, graph("compress", compress, (old, recent, text, kv, past, *ids))

    def sizes(self, u: FlowMap) -> Mapping[str, int]:
        assert isinstance(u, FarFlowMap)
        return {"batch": 1, "text": u.text_length, "frames": sum(u.partition)}

    def profile(self, u: FlowMap, asked: ShapeProfile) -> ShapeProfile:
        """frames are the video's: from them the sizes of chunks, and of what is remembered at the end."""
        assert isinstance(u, FarFlowMap)
        frames, rows, columns = asked["frames"], asked["height"], asked["width"]
        cuts = [u.chunks(n) for n in (frames.least, frames.usual, frames.most)]
        side = int(u.net.config.compressed_patch_size[-1])
        dense, sparse = ((rows.most // n) * (columns.most // n) for n in (u.patch, side))
        most, leaving, recent = LEAST, [], []
        for cut in cuts:
            for done in range(len(cut)):  # chunks before the one being made
                old = max(0, done - u.full + 1)
                most = max(most, sparse * sum(cut[:old]) + dense * sum(cut[old:done]))
                if old:
                    leaving.append(cut[old - 1])
                    recent.append(sum(cut[old:done]))
        every = [n for cut in cuts for n in cut]
        fixed = rows.fixed and columns.fixed and len({*every}) == 1
        return ShapeProfile(
            {
                **{name: r for name, r in asked.dims.items() if name != "frames"},
                "past": Range(most if fixed else LEAST, most, most),
                "chunk": _range(every),
                "old": _range(leaving or every),
                "recent": _range([n for n in recent if n] or every),  # none where full = 1, and then nobody asks
            }
        )

    def example(self, u: FlowMap, sizes: Mapping[str, int], rng: Rng) -> tuple[Latent, Cond]:
        assert isinstance(u, FarFlowMap)
        return example(u, sizes, rng)

    def config(self, u: FlowMap) -> Mapping[str, Any]:
        assert isinstance(u, FarFlowMap)
        c, partition = u.net.config, list(u.partition)
        own = {"partition": partition, "full": u.full, "side": int(c.compressed_patch_size[-1])}
        pipeline = {"chunk_partition": partition, "full_chunk_limit": u.full}
        pipeline["compressed_patch_size"] = list(c.compressed_patch_size)
        return {**described(u), **own, **pipeline, "frames": int(c.rope_max_seq_len)}

    def runner(self, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> FlowMap:
        return ExportedFar(calls, config)

    def transformer(self, u: FlowMap, calls: Mapping[str, Checked], config: Mapping[str, Any]) -> nn.Module:
        assert isinstance(u, ExportedFar)
        return FarTransformer(u, config)


def _range(sizes: Sequence[int]) -> Range:
    return Range(min(sizes), Counter(sizes).most_common(1)[0][0], max(sizes))
