"""What is measured on samples. A domain brings its own `Metric`s; the paired error needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

from .. import validators
from .._types import Latent
from ..model import Codec
from .distances import by_prompt, energy_distance, spread_of


@frozen(eq=False)
class Samples:
    """What one sampler made of one seed's noise.

    videos: [N, frames, 3, height, width] in [0, 1]. prompts: N. reference: where the teacher's ODE takes the same
    noise; None for that run itself, and for real videos. real: other real videos of the same prompts, as the codec
    gives them back, to compare with; None where there are none.
    """

    videos: Tensor
    latents: Latent
    prompts: Sequence[str]
    reference: Latent | None
    real: Samples | None = None

    @classmethod
    def given_back(cls, codec: Codec, videos: Tensor, prompts: Sequence[str], batch: int) -> Samples:
        """Real videos as the codec gives them back, `batch` at a time."""
        latents = torch.cat([codec.encode(part) for part in videos.split(batch)])
        return cls(torch.cat([codec.decode(part) for part in latents.split(batch)]), latents, prompts, None)


@frozen
class Metric:
    """One number about samples: `measure(samples)`, not a number where it does not apply.

    better: which way; "one" where samples as varied, or as loud, as real ones have 1.
    """

    name: str = field(validator=validators.matches_re(r"[a-z][a-z0-9_]*"))
    better: Literal["lower", "higher", "one"] = field(validator=validators.in_(("lower", "higher", "one")))
    measure: Callable[[Samples], float] = field(validator=validators.is_callable())

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")


def prompt_by_prompt(a: Tensor, b: Tensor, samples: Samples, measure: Callable[[Tensor, Tensor], float]) -> float:
    """Mean over prompts of `measure(samples' rows of a, real videos' rows of b)`.

    Over the prompts of which there are two samples at least on either side; not a number where there is none.
    """
    if samples.real is None:
        return math.nan
    made, real = by_prompt(samples.prompts), by_prompt(samples.real.prompts)
    found = [measure(a[made[prompt]], b[real[prompt]]) for prompt in made if prompt in real]
    return math.fsum(found) / len(found) if found else math.nan


def _energy(samples: Samples) -> float:
    return math.nan if samples.real is None else _of_latents(samples, energy_distance)


def _variety(samples: Samples) -> float:
    if samples.real is None:
        return math.nan
    return _of_latents(samples, lambda x, y: spread_of(x)) / _of_latents(samples, lambda x, y: spread_of(y))


def _of_latents(samples: Samples, measure: Callable[[Tensor, Tensor], float]) -> float:
    assert samples.real is not None
    return prompt_by_prompt(samples.latents, samples.real.latents, samples, measure)


energy_distance_of_latents = Metric("energy_distance", "lower", _energy)
"""Energy distance of latents to real videos' of the same prompt, mean over prompts: unbiased at any number of samples.

It is 0 on average for real videos, and more for samples that are wrong, or right and less varied.
"""

variety = Metric("variety", "one", _variety)
"""Mean distance of two samples of one prompt, in latents, over that of two real videos; 1 is as varied as real ones."""


def _endpoint(samples: Samples) -> float:
    if samples.reference is None:
        return math.nan
    x, y = samples.latents.double(), samples.reference.double()
    return float(((x - y).square().mean() / y.square().mean()).sqrt())


endpoint_error = Metric("endpoint_error", "lower", _endpoint)
"""‖x_N(ε) − ODE(ε)‖ / ‖ODE(ε)‖ in latents, for the same noise ε: how faithful the map is, not how good a sample looks.

A sampler that noises again, and a student matched to the teacher's distribution, may leave the teacher's path and be
none the worse for it.
"""
