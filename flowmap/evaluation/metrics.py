"""What is measured on samples. A domain brings its own `Metric`s; the paired error needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from attrs import field, frozen
from torch import Tensor

from .. import validators
from .._types import Latent


@frozen(eq=False)
class Samples:
    """What one sampler made of one seed's noise.

    videos: [N, frames, 3, height, width] in [0, 1]. prompts: N. reference: where the teacher's ODE takes the same
    noise; None for that run itself, and for real videos.
    """

    videos: Tensor
    latents: Latent
    prompts: Sequence[str]
    reference: Latent | None


@frozen
class Metric:
    """One number about samples: `measure(samples)`, not a number where it does not apply."""

    name: str = field(validator=validators.matches_re(r"[a-z][a-z0-9_]*"))
    better: Literal["lower", "higher"] = field(validator=validators.in_(("lower", "higher")))
    measure: Callable[[Samples], float] = field(validator=validators.is_callable())

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")


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
