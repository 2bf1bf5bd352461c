"""Encoded data in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from attrs import field, frozen

from .. import validators
from ..model import FlowMapSpec
from .format import DataError, Index
from .prefetch import Prefetch
from .shards import MOST_SKIPPED, LatentShards


@frozen
class LatentFolder:
    """A directory that `flowmap data synth` or `flowmap data encode` wrote.

    bad: what becomes of a sample that cannot be read: "raise", or "skip", which takes another in its place, of up to
    `most_skipped` samples. workers: threads that read ahead, 0 for none; what is read is the same.
    """

    path: str = field(converter=str)
    bad: Literal["raise", "skip"] = field(default="raise", validator=validators.in_(("raise", "skip")))
    most_skipped: int = field(default=MOST_SKIPPED, validator=validators.ge(0))
    workers: int = field(default=2, validator=validators.ge(0), repr=False)  # no part of what a run is

    def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> LatentShards | Prefetch:
        data = LatentShards.open(Path(self.path), bad=self.bad, most_skipped=self.most_skipped)
        if wrong := foreign(data.index.plan.encoders, backbone):
            raise DataError(f"{self.path}: {wrong[0]}")
        return Prefetch(data, self.workers) if self.workers else data

    def fingerprint(self) -> str:
        return Index.read(Path(self.path)).fingerprint()


def foreign(made: Mapping[str, str], backbone: FlowMapSpec) -> list[str]:
    """A sentence for each encoder of the backbone that is not the one in `made`; the unknown is not compared."""
    what = {"vae": "latents of another VAE", "text": "texts of another text encoder"}
    return [
        f"it has {what.get(name, f'what another {name} made')}: {made[name][:12]}, and the backbone's is {own[:12]}; "
        "encode the data with this backbone"
        for name, own in sorted(backbone.encoders().items())
        if name in made and made[name] != own
    ]
