"""Causal Wan students of one time that others published: FAR's network with gate 0, in which r has no say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from flowmap_wan.experts import PARTS

from flowmap.atomic import write_json
from flowmap.mistaken import INDEX
from flowmap.model import Kind, Sampling
from flowmap.path import shift
from flowmap.published.layout import Brought
from flowmap.published.weights import Weights

from .experts import PIPELINE
from .spec import COMPRESSED_PATCH, Far

if TYPE_CHECKING:
    from torch import Tensor

FRAMES = 21
"""Of a training video."""
EMA = "generator_ema"
POSITIONS = 1024
"""Of frames, where a network does not say: what diffusers takes."""


@frozen
class Causal:
    """Chunks of `frames` latent frames, the first perhaps of `first`, each seeing all before it, whose time is 0.

    levels, shift: where its sampler stops, as its publisher writes them; a warped level is shifted. Between two levels
    it jumps to data and renews the noise. It has a guidance built in that no file says. boundary: of two networks, the
    time above which the first is asked, and where its jumps end (`flowmap.experts.phased_step`). wrapper: the key by
    which a checkpoint is known for one of this layout.
    """

    about: str
    levels: tuple[float, ...]
    shift: float = 5.0
    warped: bool = True
    frames: int = 3
    first: int | None = None
    boundary: float | None = None
    wrapper: str | None = None

    def claims(self, found: Weights) -> bool:
        return self.wrapper is not None and self.wrapper in found.taken

    @property
    def times(self) -> tuple[float, ...]:
        """The levels as times, decreasing, before 0."""
        return tuple(shift(torch.tensor(self.levels) / 1000, self.shift if self.warped else 1.0).tolist())

    @property
    def partition(self) -> tuple[int, ...]:
        """Of a training video; a longer one goes on with chunks of `frames`."""
        first = self.first or self.frames
        return first, *(self.frames,) * ((FRAMES - first) // self.frames)

    def write(self, found: Weights, base: str, out: Path) -> Brought:
        import diffusers
        from flowmap_wan import experts, pipelines
        from flowmap_wan.directory import ready
        from flowmap_wan.published import fitted, latents

        ready(spec := Far(base, expert="high" if experts.experts(experts.index_of(base)) else None))
        config = spec.outline().config
        states = fitted(found, config, base, experts=self.boundary is not None)
        networks = {
            part: causal(state, config, self.partition) for part, state in zip(PARTS.values(), states, strict=False)
        }
        scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=self.shift)
        pipelines.write(base, out, {**networks, "scheduler": scheduler}, Far.pipelines[-1])
        if self.boundary is not None:
            index = json.loads((out / INDEX).read_text())
            write_json(out / INDEX, {**index, "_class_name": PIPELINE, "boundary_ratio": self.boundary})
        kind: Kind = "consistency" if self.boundary is None else "phased"
        return Brought(Sampling(kind, None, self.times), latents(config))


def causal(state: Mapping[str, Tensor], config: Mapping[str, Any], partition: Sequence[int]) -> Any:
    """FAR's network, which computes what a block-causal Wan with the tensors `state` does.

    gate 0: the time embedding is e(t) alone. Nothing is ever compressed: all chunks that there are positions for stay
    at full resolution. The parts without a say are what a lift would make of them: e' a copy of e, and the enlarged
    kernel of compressed tokens, for whoever trains on with fewer chunks in full.
    """
    import diffusers
    from flowmap_wan.build import second_embedder
    from flowmap_wan.outline import rebuilt

    with torch.device("meta"):
        net = diffusers.AnyFlowFARTransformer3DModel(
            **config,
            gate_value=0.0,
            compressed_patch_size=COMPRESSED_PATCH,
            full_chunk_limit=config.get("rope_max_seq_len", POSITIONS),
            chunk_partition=tuple(partition),
        )
    net.load_state_dict({**state, **second_embedder(state), **Far().extra_state(state)}, strict=True, assign=True)
    net.rope = rebuilt(net.rope)
    return net


FOUR = (1000, 750, 500, 250)
SELF_FORCING = Causal("Self-Forcing, arXiv:2506.08009, 1.3B: 3 frames a chunk, 4 levels", FOUR, wrapper=EMA)
CAUSAL_FORCING = Causal("Causal Forcing, arXiv:2602.02214, 1.3B: 3 frames a chunk, 4 levels", FOUR)
CAUSAL_FORCING_FRAMEWISE = Causal("Causal Forcing, frame by frame: 1 frame a chunk, 4 levels", FOUR, frames=1)
KREA_REALTIME = Causal("Krea Realtime 14B: 3 frames a chunk, 4 levels", FOUR)
CAUSVID = Causal(
    "CausVid, arXiv:2412.07772, 1.3B: 3 frames a chunk, 3 levels", (1000, 757, 522), shift=8.0, warped=False
)
LIGHTX2V_CAUSVID = Causal(
    "LightX2V's CausVid, 14B: 3 frames a chunk, 9 levels",
    (999, 934, 862, 756, 603, 410, 250, 140, 74),
    shift=8.0,
)
FASTVIDEO_CAUSALWAN = Causal(
    "FastVideo's CausalWan2.2 A14B: two experts, a first chunk of 1 frame, then 3 a chunk, 8 levels",
    (1000, 850, 700, 550, 350, 275, 200, 125),
    shift=12.0,
    first=1,
    boundary=0.875,
)
"""Chunks and levels are those of their publishers' configurations."""
