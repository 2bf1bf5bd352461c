"""Encoded data on disk: latents in shards, texts once; safetensors and JSON.

index.json              shards with their counts, the prompt of every sample, shapes, sha256 of each file
latents-00000.safetensors    {"x": [n, F, C, H, W]}
texts.safetensors       {"cond/NAME": [prompts, ...], "null/NAME": [1, ...]}
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .._types import Batch, Cond, Latent

INDEX = "index.json"


class DataError(ValueError):
    """The data cannot be used, and why."""


@define
class LatentShards:
    """Samples of a directory that `write` made, read as they are asked for."""

    path: Path
    index: Mapping[str, Any]
    texts: Mapping[str, Tensor]
    _starts: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._starts = [0, *accumulate(shard["count"] for shard in self.index["shards"])]

    @classmethod
    def open(cls, path: Path) -> LatentShards:
        """Checks every file against its hash first."""
        try:
            index = json.loads((path / INDEX).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path} holds no encoded data: {error}") from None
        for name, expected in index["files"].items():
            if not (path / name).is_file() or _hash(path / name) != expected:
                raise DataError(f"{path / name} is missing or damaged: delete {path} and encode again")
        return cls(path, index, load_file(path / "texts.safetensors"))

    def __len__(self) -> int:
        return self._starts[-1]

    def batch(self, index: Sequence[int]) -> Batch:
        x = torch.stack([self._latent(i) for i in index])
        rows = [self.index["prompts"][i] for i in index]
        cond = {k.removeprefix("cond/"): v[rows] for k, v in self.texts.items() if k.startswith("cond/")}
        null = {k.removeprefix("null/"): v for k, v in self.texts.items() if k.startswith("null/")}
        return Batch(x, cond, null)

    def _latent(self, i: int) -> Tensor:
        shard = bisect_right(self._starts, i) - 1
        with safe_open(self.path / self.index["shards"][shard]["file"], framework="pt") as file:
            return file.get_slice("x")[i - self._starts[shard]]


def write(
    path: Path, latents: Iterable[Latent], prompts: Sequence[int], cond: Cond, null: Cond, made_from: Mapping[str, Any]
) -> LatentShards:
    """Write each batch of `latents` as one shard; the index comes last, so what is unfinished is never opened.

    prompts: for each sample, its row in `cond`. made_from: what the data was made from, kept in the index.
    """
    path.mkdir(parents=True, exist_ok=True)
    shards: list[tuple[str, int]] = []
    for number, x in enumerate(latents):
        name = f"latents-{number:05d}.safetensors"
        save_file({"x": x.cpu().contiguous()}, path / name)
        shards.append((name, len(x)))
    texts = {f"cond/{k}": v for k, v in cond.items()} | {f"null/{k}": v for k, v in null.items()}
    save_file({k: v.cpu().contiguous() for k, v in texts.items()}, path / "texts.safetensors")
    files = {name: _hash(path / name) for name in [*(name for name, _ in shards), "texts.safetensors"]}
    index = {
        "shards": [{"file": name, "count": count} for name, count in shards],
        "prompts": list(prompts),
        "files": files,
        "made_from": dict(made_from),
    }
    partial = path / f".{INDEX}.partial"
    partial.write_text(json.dumps(index))
    partial.replace(path / INDEX)
    return LatentShards.open(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
