"""A guided diffusion whose flow map is known, as a backbone with a codec: the evaluation's oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import torch
from attrs import frozen
from torch import Tensor

from flowmap import FlowMap, FlowMapSpec
from flowmap._types import Cond, Latent, Role
from flowmap.evaluation import Metric, QualityCurve, Samples, endpoint_error
from flowmap.testing import GuidedGaussianFlowMap

GUIDANCE = 3.0
SHAPE = (2, 3, 4, 6)


@frozen
class Exact(FlowMapSpec):
    """The teacher is the conditional velocity; the student is the exact flow map of the guided one."""

    shift: float = 2.0

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        return {role: GuidedGaussianFlowMap(w=GUIDANCE if role == "student" else 1.0) for role in roles}

    def tiny(self) -> Self:
        return self

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return torch.zeros(batch, *SHAPE), {"label": torch.ones(batch)}

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Pixels:
        return Pixels()


class Pixels:
    """Latents are videos with grey 0.5 at zero."""

    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        return {"label": torch.tensor([float(bool(prompt)) for prompt in prompts])}

    def encode(self, videos: Tensor) -> Latent:
        return videos * 10 - 5

    def decode(self, x: Latent) -> Tensor:
        return (x / 10 + 0.5).clamp(0, 1)

    def decode_chunks(self, chunks: Iterable[Latent]) -> Iterator[Tensor]:
        return map(self.decode, chunks)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return frames, 3, height, width


def brightness(samples: Samples) -> float:
    return float(samples.videos.mean())


def curve(**settings: object) -> QualityCurve:
    metrics = (Metric("brightness", "higher", brightness), endpoint_error)
    defaults: dict[str, object] = {"steps": (1, 2, 4), "reference": 64, "samples": 3, "guidance": GUIDANCE}
    return QualityCurve(("left", "right"), metrics, SHAPE, **(defaults | settings))  # type: ignore[arg-type]
