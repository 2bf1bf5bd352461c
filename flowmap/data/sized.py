"""Data whose sizes are known before it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from attrs import field, frozen

from ..model import FlowMapSpec
from .fingerprint import fingerprint
from .format import DataError
from .source import Data, Source


def _size(value: Sequence[int]) -> tuple[int, ...]:
    return tuple(value)


def _sizes(value: Mapping[str, Sequence[int]]) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(size) for name, size in value.items()}


@runtime_checkable
class TellsSizes(Protocol):
    """Data, or a source of it, that knows its samples' sizes before it is loaded. Not a part of `Source`: nobody has
    to, and a plan needs it alone.
    """

    def sizes(self, backbone: FlowMapSpec) -> Mapping[str, tuple[int, ...]]:
        """Of the latents "x", [F, C, H, W], and of each condition, without the batch."""


@frozen
class Sized:
    """`source`, whose samples have a known size: a plan needs it before there is data, and a run refuses another.

    x: [F, C, H, W]. cond: by name, without the batch; another length of a text, its first entry, is no other size.
    """

    source: Source
    x: tuple[int, ...] = field(converter=_size)
    cond: Mapping[str, tuple[int, ...]] = field(factory=dict, converter=_sizes)

    def sizes(self, backbone: FlowMapSpec) -> Mapping[str, tuple[int, ...]]:
        return {"x": self.x, **self.cond}

    def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> Data:
        data = self.source.load(backbone, cache, device=device)
        sample = data.batch([0])
        found = {"x": tuple(sample.x.shape[1:]), **{name: tuple(v.shape[2:]) for name, v in sample.cond.items()}}
        asked = {"x": self.x, **{name: size[1:] for name, size in self.cond.items()}}
        if found != asked:
            raise DataError(f"{self.source}: a sample is {found}: must be {asked}, as Sized(...) in the recipe says")
        return data

    def fingerprint(self) -> str | None:
        return fingerprint(self.source)
