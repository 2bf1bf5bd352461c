"""What a finished chunk costs to remember: one step of `extend`, beside encoding the whole history anew."""

from __future__ import annotations

import pytest
import torch
from flowmap_far import Far
from flowmap_far.layout import CLEAN, COMPRESSED, Piece
from flowmap_far.network import Cache

from flowmap import Rng

from .paired import Paired, timed

SIDE, REPEATS = 32, 5  # 256 tokens a frame and chunk, 64 compressed
LONGEST = 64


@pytest.fixture(scope="module")
def student(tiny_wan):
    config = {**tiny_wan.config, "rope_max_seq_len": LONGEST}
    spec = Far(lora=None, text_length=12, text_tokens=12, partition=(1, 1), config=config)
    return spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]


@pytest.fixture(scope="module")
def history(student, tiny_wan):
    """Latents of `LONGEST` chunks, a text, and the snapshot after each chunk."""
    rng = Rng.seeded(0)
    channels, width = tiny_wan.config["in_channels"], tiny_wan.config["text_dim"]
    x = rng.noise_like(torch.zeros(1, LONGEST, channels, SIDE, SIDE))
    cond = {"text": rng.noise_like(torch.zeros(1, 12, width))}
    snapshots = [None]
    with torch.no_grad():
        for k in range(LONGEST):
            snapshots.append(student.extend(snapshots[-1], x[:, k : k + 1], cond))
    return x, cond, snapshots


def pieces(student, chunks):
    old = max(0, chunks - student.full + 1)
    return tuple(Piece(COMPRESSED if k < old else CLEAN, k, k, 1) for k in range(chunks))


@pytest.mark.benchmark(group="history")
@pytest.mark.parametrize("chunks", [8, 16, 32, 64])
def test_extending_beside_encoding_anew(benchmark, student, history, chunks):
    x, cond, snapshots = history
    frames, layout = x[:, :chunks].split(1, dim=1), pieces(student, chunks)

    @torch.no_grad()
    def incremental(case):
        return student.extend(snapshots[chunks - 1], frames[-1], cond)

    @torch.no_grad()
    def anew(case):
        return student._encode(layout, frames, Cache(), cond)

    ours, theirs = incremental(0).memory, anew(0)
    difference = max(
        float((a - b).abs().max())
        for piece, other in zip(ours, theirs, strict=True)
        for layer, expected in zip(piece, other, strict=True)
        for a, b in zip(layer, expected, strict=True)
    )
    found = Paired.measure(benchmark, timed(incremental), timed(anew), repeats=REPEATS)
    encoded = {"extend": (SIDE // 4) ** 2 + 2 * (SIDE // 2) ** 2}
    encoded["anew"] = sum((SIDE // (4 if p.form == COMPRESSED else 2)) ** 2 for p in layout)
    benchmark.extra_info |= {
        "subject": f"extend, {chunks} chunks",
        "reference": f"all {chunks} chunks anew",
        **found.summary(),
        "tokens_encoded": encoded,
        "largest_difference": difference,
    }
    assert difference <= 1e-4
