"""What previews show: prompts from a file, from the recipe's evaluation, or the data's own samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from .._types import Batch, Cond
from ..data import Data
from ..data.captions import captions
from ..model import FlowMapSpec
from .curve import QualityCurve

LOOKED = 1000
"""Samples that the data's own are chosen from: the first ones."""


@frozen(eq=False)
class Subjects:
    """cond: of each prompt one row; null: what guidance compares with; shape: of a latent. All on the CPU."""

    prompts: tuple[str, ...]
    cond: Cond
    null: Cond
    shape: tuple[int, ...]

    @classmethod
    def find(
        cls, prompts: Sequence[str], count: int, judge: object, backbone: FlowMapSpec, data: Data, device: torch.device
    ) -> Subjects:
        """`prompts`; or some of those of `judge`, if it is a `QualityCurve`; or what `count` samples of the data show.

        Text is encoded for the first two alone. What networks are told beside the text, such as a first frame, is
        always of samples of the data.
        """
        texts = [*prompts]
        if not texts and isinstance(judge, QualityCurve) and not backbone.images:
            texts = [judge.prompts[k] for k in spaced(count, len(judge.prompts))]
        samples, own = _samples(data, len(texts) or count)
        shape = tuple(samples.x.shape[1:])
        if not texts:
            return cls(own, _cpu(samples.cond), _cpu(samples.null), shape)
        codec = backbone.codec(device=device, dtype=torch.float32)
        rest = {name: value for name, value in samples.cond.items() if name in backbone.images}
        rows = torch.arange(len(texts)) % len(samples.x)
        cond = {**_cpu(codec.encode_prompts(texts)), **{name: value[rows] for name, value in rest.items()}}
        return cls(tuple(texts), cond, _cpu(codec.encode_prompts([""])), shape)


def spaced(count: int, total: int) -> list[int]:
    """At most `count` numbers below `total`, from everywhere."""
    return [k * total // min(count, total) for k in range(min(count, total))]


def _samples(data: Data, count: int) -> tuple[Batch, tuple[str, ...]]:
    """Some samples of the size of the first, of different captions, if they have any; and these."""
    looked = min(len(data), LOOKED)
    told = captions(data, looked)
    found: list[int] = []
    seen: set[str] = set()
    size = data.batch([0]).x.shape
    for k in dict.fromkeys([*spaced(count, looked), *range(min(looked, 8 * count))]):
        if len(found) == count:
            break
        if (told is None or told[k] not in seen) and data.batch([k]).x.shape == size:
            found.append(k)
            seen |= set() if told is None else {told[k]}
    return data.batch(found), tuple(f"sample {k} of the data" if told is None else told[k] for k in found)


def _cpu(cond: Cond) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in cond.items()}
