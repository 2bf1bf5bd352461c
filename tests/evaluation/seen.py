"""A toy network with a codec, and one with dropout: what previews look at, and must not disturb."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.nn import functional as nnf

from flowmap import AdamW, Ema, Recipe, Stage, TensorData, distill
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.evaluation import Alarms, Limits, Previews
from flowmap.methods import anyflow
from flowmap.model import Codec
from flowmap.plugins import manager
from tests.toys import Toy, ToyFlowMap, data

QUIET = manager(entry_points=False)


class Drops(ToyFlowMap):
    """Draws by torch's own generator whenever it is trained."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        u = super().forward(z, t, r, cond, cache)
        return nnf.dropout(u, 0.1, training=self.training)


@frozen
class Seen(Toy):
    """With a codec that shows two of three colours."""

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return Colours()


class Colours:
    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        return {"text": torch.tensor([[float(len(p)), float(bool(p)), 0.0] for p in prompts]) / 10}

    def encode(self, videos: Tensor) -> Latent:
        return 4 * videos[:, :, :2] - 2

    def decode(self, x: Latent) -> Tensor:
        return nnf.pad(x / 4 + 0.5, (0, 0, 0, 0, 0, 1)).clamp(0, 1)

    def decode_chunks(self, chunks: Iterable[Latent]) -> Iterator[Tensor]:
        return map(self.decode, chunks)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return frames, 2, height, width


class Told(TensorData):
    """Knows what its samples show."""

    def prompts(self) -> Iterator[str]:
        return (f"clip {k // 2}" for k in range(len(self)))


def told(samples: int = 16) -> Told:
    plain = data(samples)
    return Told(plain.x, plain.cond, plain.null)


FORWARD = Stage(anyflow.forward(guidance=2.0), 6, batch=4, optimizer=AdamW(lr=1e-3), ema=Ema(0.9, 1))
ON_POLICY = Stage(anyflow.on_policy(steps=(2, 4)), 5, batch=4, optimizer=AdamW(lr=1e-3), ema=Ema(0.9, 1))
RECIPE = Recipe(Seen(network=Drops), (FORWARD, ON_POLICY), data=told(), name="seen")
STEADY = evolve(RECIPE, backbone=Seen())
"""Without dropout, whose draws are no part of a checkpoint."""
OFTEN = Previews(every=2, steps=(1, 2), reference=4)
SHY = evolve(OFTEN, alarms=Alarms(latent_deviation=Limits(5.0, 6.0), stop=2))
"""Alarmed by every student."""


if __name__ == "__main__":  # under torchrun: FOLDER
    torch.set_num_threads(1)
    for name in ("seen", "unseen"):
        shown = OFTEN if name == "seen" else None
        distill(STEADY, out=Path(sys.argv[1]) / name, device="cpu", previews=shown, pm=QUIET)
