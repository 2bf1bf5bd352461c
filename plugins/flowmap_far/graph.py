"""The causal network as functions of tensors alone: a step of one chunk, and the encoding of finished ones.

The history is one tensor of keys and values, rotated, [layers, 2, B, S, heads, head_dim], with the chunk that each of
its S places belongs to [S]; -1 is an empty place, which nobody sees. So a history of any length fits a fixed size, and
no token attends to padding, unlike in diffusers' own cached path.
"""

from __future__ import annotations

import torch
from flowmap_lora.masters import plain
from flowmap_wan.block import Rope, rotation
from flowmap_wan.graph import POSITIONS, Attention, WanGraph, same_sizes
from torch import Tensor

from flowmap._types import Latent, Time

from .network import FAR_PATCH, FarFlowMap

EMPTY = -1


class FarGraph(WanGraph):
    """What the three graphs share. positions: of frames in the video, [F]."""

    def __init__(self, u: FarFlowMap, attention: Attention = "sdpa") -> None:
        super().__init__(u, attention)

    def full_rope(self, z: Latent, positions: Tensor) -> Rope:
        rows, columns = (
            [part[:n] for part in self.table(axis)]
            for axis, n in (("h", z.shape[3] // self.patch), ("w", z.shape[4] // self.patch))
        )
        return self.rope([part[positions] for part in self.table("f")], rows, columns)

    def layers(
        self,
        h: Tensor,
        modulation: Tensor,
        size: int,
        text: Tensor,
        rope: Rope,
        kv: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """All blocks; the last one's tokens, and the keys and values of every layer, like `kv`."""
        context, found = self.text(text), []
        for i, block in enumerate(self.blocks):
            past = kv[i, 0], kv[i, 1]
            h, k, v = self.block(block, h, modulation, size, context, rope, past, mask)  # type: ignore[arg-type]
            found.append(torch.stack([k, v]))
        return h, torch.stack(found)

    def visible(self, past: Tensor, tokens: Tensor) -> Tensor:
        """[1, S + S'] bool: every place that is not empty, and all of the chunk itself, `tokens` [B, S', d]."""
        own = torch.ones_like(tokens[0, :, 0], dtype=torch.bool)
        return torch.cat([past > EMPTY, own])[None]


class Step(FarGraph):
    """u(z, t, r | text, history) of one chunk."""

    def forward(
        self, z: Latent, timestep: Time, r_timestep: Time, text: Tensor, kv: Tensor, past: Tensor, positions: Tensor
    ) -> Latent:
        same_sizes(z, timestep, r_timestep, text)
        torch._check(positions.shape[0] == z.shape[1])
        torch._check(kv.shape[2] == z.shape[0])
        torch._check(past.shape[0] == kv.shape[3])
        e, modulation = self.embed(timestep, r_timestep)
        h = self.tokens(z, self.patch_embedding)
        size = (z.shape[3] // self.patch) * (z.shape[4] // self.patch)
        h, _ = self.layers(h, modulation, size, text, self.full_rope(z, positions), kv, self.visible(past, h))
        return self.latent(h, e, z)


class Encode(FarGraph):
    """The keys and values of a finished chunk at t = r = 0."""

    def forward(self, x: Latent, text: Tensor, kv: Tensor, past: Tensor, positions: Tensor) -> Tensor:
        torch._check(text.shape[0] == x.shape[0])
        torch._check(positions.shape[0] == x.shape[1])
        torch._check(kv.shape[2] == x.shape[0])
        torch._check(past.shape[0] == kv.shape[3])
        zero = torch.zeros_like(x[:, :1, 0, 0, 0], dtype=torch.float32)
        _, modulation = self.embed(zero, zero)
        h = self.tokens(x, self.patch_embedding)
        rope = self.full_rope(x, positions)
        return self.layers(h, modulation, h.shape[1], text, rope, kv, self.visible(past, h))[1]


class Small(FarGraph):
    """What can make compressed tokens: `rows` and `columns` of one are at the middle of the positions it stands for."""

    def __init__(self, u: FarFlowMap, attention: Attention = "sdpa") -> None:
        super().__init__(u, attention)
        self.far_patch_embedding = plain(u.net.get_submodule(FAR_PATCH))
        self.side = int(u.net.config.compressed_patch_size[-1])
        n = self.side // self.patch
        middles = n * torch.arange(POSITIONS // n, dtype=torch.float64) + (n - 1) / 2
        head_dim = int(u.net.config.attention_head_dim)
        one, none = torch.zeros(1, dtype=torch.float64), 2 * (head_dim // 6) // 2
        for axis, axes in (("h", (one, middles, one)), ("w", (one, one, middles))):
            first = head_dim // 2 - (2 if axis == "h" else 1) * none
            for name, part in zip(("cos", "sin"), rotation(axes, head_dim), strict=True):
                table = part[:, first : first + none].contiguous()
                self.register_buffer(f"{name}_middle_{axis}", table.to(u.net.patch_embedding.weight.device))

    def small(self, x: Latent, positions: Tensor) -> tuple[Tensor, Rope]:
        """Compressed tokens and their rotation; what one would only half cover is left out."""
        rows, columns = x.shape[3] // self.side, x.shape[4] // self.side
        tables = [
            [self.get_buffer(f"{name}_middle_{axis}")[:n] for name in ("cos", "sin")]
            for axis, n in (("h", rows), ("w", columns))
        ]
        cut = x[:, :, :, : rows * self.side, : columns * self.side]
        rope = self.rope([part[positions] for part in self.table("f")], *tables)
        return self.tokens(cut, self.far_patch_embedding), rope


class Compress(Small):
    """The keys and values of the chunk that leaves full resolution, compressed, and of the later ones, which see it."""

    def forward(
        self,
        old: Latent,
        recent: Latent,
        text: Tensor,
        kv: Tensor,
        past: Tensor,
        old_positions: Tensor,
        positions: Tensor,
        old_chunk: Tensor,
        chunk: Tensor,
    ) -> Tensor:
        """old [B, F', C, H, W], recent [B, F, C, H, W]; old_chunk [F'], chunk [F]: which chunk a frame is of."""
        torch._check(old.shape[0] == recent.shape[0])
        torch._check(old.shape[3] == recent.shape[3])
        torch._check(old.shape[4] == recent.shape[4])
        torch._check(text.shape[0] == recent.shape[0])
        torch._check(kv.shape[2] == recent.shape[0])
        torch._check(past.shape[0] == kv.shape[3])
        for ids in (old_positions, old_chunk):
            torch._check(ids.shape[0] == old.shape[1])
        for ids in (positions, chunk):
            torch._check(ids.shape[0] == recent.shape[1])
        first, far = self.small(old, old_positions)
        second, near = self.tokens(recent, self.patch_embedding), self.full_rope(recent, positions)
        rope = torch.cat([far[0], near[0]]), torch.cat([far[1], near[1]])
        sizes = (
            (old.shape[3] // self.side) * (old.shape[4] // self.side),
            (recent.shape[3] // self.patch) * (recent.shape[4] // self.patch),
        )
        ids = torch.cat(
            [
                old_chunk[:, None].expand(old.shape[1], sizes[0]).reshape(-1),
                chunk[:, None].expand(recent.shape[1], sizes[1]).reshape(-1),
            ]
        )
        keys = torch.cat([past, ids])
        mask = (keys > EMPTY) & (keys <= ids[:, None])
        h = torch.cat([first, second], 1)
        zero = torch.zeros_like(recent[:, :1, 0, 0, 0], dtype=torch.float32)
        _, modulation = self.embed(zero, zero)
        return self.layers(h, modulation, h.shape[1], text, rope, kv, mask)[1]


class CompressAlone(Small):
    """The keys and values of a finished chunk, compressed, where no finished one stays at full resolution."""

    def forward(self, x: Latent, text: Tensor, kv: Tensor, past: Tensor, positions: Tensor) -> Tensor:
        torch._check(text.shape[0] == x.shape[0])
        torch._check(positions.shape[0] == x.shape[1])
        torch._check(kv.shape[2] == x.shape[0])
        torch._check(past.shape[0] == kv.shape[3])
        zero = torch.zeros_like(x[:, :1, 0, 0, 0], dtype=torch.float32)
        _, modulation = self.embed(zero, zero)
        h, rope = self.small(x, positions)
        return self.layers(h, modulation, h.shape[1], text, rope, kv, self.visible(past, h))[1]
