"""Causal Wan students of one time that others published: FAR's network with gate 0, in which r has no say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen

from flowmap.model import Sampling
from flowmap.path import shift
from flowmap.published.layout import Brought
from flowmap.published.weights import Weights

from .spec import COMPRESSED_PATCH, Far

if TYPE_CHECKING:
    from torch import Tensor

CHUNKS = 7
"""Of a training video: 21 latent frames, three at a time."""
EMA = "generator_ema"
POSITIONS = 1024
"""Of frames, where a network does not say: what diffusers takes."""


@frozen
class Causal:
    """Chunks of `frames` latent frames, the first of `first`, each seeing all before it, whose time is 0.

    levels, shift: where its sampler stops, as its publisher writes them; a warped level is shifted. Between two levels
    it jumps to data and renews the noise. It has a guidance built in that no file says. wrapper: the key by which a
    checkpoint is known for one of this layout.
    """

    about: str
    levels: tuple[float, ...]
    shift: float = 5.0
    warped: bool = True
    frames: int = 3
    first: int = 3
    wrapper: str | None = None

    def claims(self, found: Weights) -> bool:
        return self.wrapper is not None and self.wrapper in found.taken

    @property
    def times(self) -> tuple[float, ...]:
        """The levels as times, decreasing, before 0."""
        return tuple(shift(torch.tensor(self.levels) / 1000, self.shift if self.warped else 1.0).tolist())

    def write(self, found: Weights, base: str, out: Path) -> Brought:
        import diffusers
        from flowmap_wan import pipelines
        from flowmap_wan.directory import ready
        from flowmap_wan.published import fitted

        ready(spec := Far(base))
        config = spec.outline().config
        network = causal(fitted(found, config, base), config, (self.first, *(self.frames,) * (CHUNKS - 1)))
        scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=self.shift)
        pipelines.write(base, out, {"transformer": network, "scheduler": scheduler}, Far.pipelines[-1])
        return Brought(Sampling("consistency", None, self.times), size(config))


def size(config: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Of the latents that published students of this network were trained on: 81 frames at 480 × 832."""
    from flowmap_wan.sizes import LATENT, T2V_1_3B, T2V_14B

    same = {"num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "ffn_dim"}
    known = any(all(config.get(name) == full[name] for name in same) for full in (T2V_1_3B, T2V_14B))
    return LATENT if known else None


def causal(state: Mapping[str, Tensor], config: Mapping[str, Any], partition: Sequence[int]) -> Any:
    """FAR's network, which computes what a block-causal Wan with the tensors `state` does.

    gate 0: the time embedding is e(t) alone. Nothing is ever compressed: all chunks that there are positions for stay
    at full resolution. The parts without a say are what a lift would make of them: e' a copy of e, and the enlarged
    kernel of compressed tokens, for whoever trains on with fewer chunks in full.
    """
    import diffusers
    from flowmap_wan.build import rebuilt

    with torch.device("meta"):
        net = diffusers.AnyFlowFARTransformer3DModel(
            **config,
            gate_value=0.0,
            compressed_patch_size=COMPRESSED_PATCH,
            full_chunk_limit=config.get("rope_max_seq_len", POSITIONS),
            chunk_partition=tuple(partition),
        )
    times = {name: value for name, value in state.items() if ".time_embedder." in name}
    more = {name.replace(".time_embedder.", ".delta_embedder."): value.clone() for name, value in times.items()}
    net.load_state_dict({**state, **more, **Far().extra_state(state)}, strict=True, assign=True)
    net.rope = rebuilt(net.rope)
    return net


SELF_FORCING = Causal("Self-Forcing, arXiv:2506.08009: 3 frames a chunk, 4 steps", (1000, 750, 500, 250), wrapper=EMA)
