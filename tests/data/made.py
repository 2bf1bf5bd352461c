"""Samples without a model: of any number, at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from flowmap import Rng
from flowmap.data import LatentShards
from flowmap.data.format import Plan
from flowmap.data.writer import Made, write

SHAPE, LENGTH, WIDTH = (3, 2, 2, 2), 6, 4
ENCODERS = {"vae": "a" * 64, "text": "b" * 64}


def latent(k: int) -> Tensor:
    return Rng.seeded(1, k).noise_like(torch.zeros(SHAPE))


def prompt(k: int) -> str:
    return f"prompt {k // 2}"


def text(words: str) -> Tensor:
    """[LENGTH, WIDTH], of which 0 to LENGTH - 1 rows are no padding."""
    k = int(words.split()[-1]) if words else -1
    value = Rng.seeded(2, k).noise_like(torch.zeros(LENGTH, WIDTH))
    value[(k + 1) % LENGTH :] = 0
    return value


@frozen
class Toy:
    """begin, called with the number of each shard: for what goes wrong there."""

    begin: Callable[[int], Any] = field(default=lambda first: None)

    def null(self) -> dict[str, Tensor]:
        self.begin(-1)
        return {"text": text("")[None], "label": torch.tensor([7])}

    def samples(self, first: int, last: int) -> Made:
        self.begin(first)
        prompts = [prompt(k) for k in range(first, last)]
        distinct = [*dict.fromkeys(prompts)]
        cond = {
            "text": torch.stack([text(words) for words in distinct]),
            "label": torch.arange(len(distinct)) + first,
        }
        return Made(torch.stack([latent(k) for k in range(first, last)]), prompts, cond)


def plan(count: int = 10, shard: int = 4, **made_from: Any) -> Plan:
    return Plan(count, shard, {"toy": 1, **made_from}, ENCODERS)


def written(path: Path, count: int = 10, shard: int = 4) -> LatentShards:
    data = write(path, plan(count, shard), Toy)
    assert data is not None
    return data


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
