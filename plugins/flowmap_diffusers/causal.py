"""u of a row's network that makes a video chunk after chunk, every chunk at a time of its own."""

from __future__ import annotations

from typing import ClassVar

import torch

from flowmap import Rng
from flowmap._types import Cache, Cond, Latent
from flowmap.window import Window

from .network import DiffusersFlowMap
from .row import Row


class ChunkFlowMap(DiffusersFlowMap):
    """Student, teacher and critic alike. Trained is the last chunk of a prefix of random length, after the clean ones
    before it, in cond["history"] [B, F', C, H, W]; made is a chunk after `cache`, the network's memory of those.

    Frames that are given together without either are chunks at one time, each of which hears those before it.
    """

    more: ClassVar[frozenset[str]] = frozenset({"history"})
    window: Window | None = None

    def chunks(self, frames: int) -> tuple[int, ...]:
        width = self.net.config.chunk_width
        return (width,) * (frames // width) + ((frames % width,) if frames % width else ())

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        clean = self.units(torch.full((len(x),), 1 - self.net.config.clean_t, device=x.device))
        with self.running.clock.at(clean) as told, self.running.sets.using(self.adapter):
            recent = None if self.window is None else self.window.recent
            return self.net.remember(self._cast(x), told / self.row.multiplies, cache, recent)

    def bound(self, window: Window) -> None:
        """It forgets by itself all but the last chunks, and knows differences of positions alone: fewer of them."""
        if window.sink or window.int8:
            raise ValueError(
                f"{window}: this network remembers its last chunks alone: must have sink = 0, int8 = False"
            )
        self.window = window

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        sizes = self.chunks(x.shape[1])
        n = rng.randint(len(sizes))
        first = sum(sizes[:n])
        return x[:, first : first + sizes[n]], {**cond, "history": x[:, :first]} if n else cond


def kind(row: Row) -> type[DiffusersFlowMap]:
    """Of the row's networks."""
    return ChunkFlowMap if row.causal else DiffusersFlowMap
