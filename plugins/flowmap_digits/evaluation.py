"""Moving digits judged: by what the classifier reads, by tracked motion, by the distance to real clips."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from flowmap.evaluation import Metric, QualityCurve, Samples, endpoint_error

from . import measure
from .classifier import Moments
from .videos import Prompt, all_prompts, held_out_prompts, render_all

SHAPE = (5, 4, 8, 8)
"""Nine 32×32 frames as latents of the tiny Wan VAE."""
REFERENCE_CLIPS, REFERENCE_SEED = 1024, 20250602


def curve(**settings: Any) -> QualityCurve:
    """The sixteen prompts that no training clip has, beside real clips in handwriting that nothing was trained on."""
    texts = tuple(prompt.text for prompt in held_out_prompts())
    return QualityCurve(texts, METRICS, SHAPE, real=real_clips, **settings)


def real_clips(texts: Sequence[str], seed: int) -> Tensor:
    """One real clip of each prompt, [N, 9, 3, 32, 32]."""
    return render_all(_prompts(texts), np.random.default_rng([REFERENCE_SEED, 1, seed]), images="held_out")


def frechet(samples: Samples) -> float:
    """The distance to real clips of the same prompts, in the classifier's features."""
    here = measure.moments(measure.features(samples.videos))
    return measure.gaussian_frechet(here, _real(tuple(sorted(set(samples.prompts)))))


def label_accuracy(samples: Samples) -> float:
    """Share of the clips in which the classifier reads the prompt's digit."""
    return measure.label_accuracy(samples.videos, _prompts(samples.prompts))["digit"]


def direction_accuracy(samples: Samples) -> float:
    """Share of the clips that start the prompt's way."""
    return measure.direction_accuracy(samples.videos, _prompts(samples.prompts))


def speed_error(samples: Samples) -> float:
    """Mean error of the speed, in pixels a frame."""
    return measure.speed_error(samples.videos, _prompts(samples.prompts))


METRICS = (
    Metric("frechet_distance", "lower", frechet),
    Metric("label_accuracy", "higher", label_accuracy),
    Metric("direction_accuracy", "higher", direction_accuracy),
    Metric("speed_error", "lower", speed_error),
    endpoint_error,
)


@cache
def _by_text() -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in all_prompts()}


def _prompts(texts: Sequence[str]) -> list[Prompt]:
    if unknown := sorted(set(texts) - _by_text().keys()):
        raise ValueError(f"{unknown[0]!r} is no prompt of moving digits; such as {next(iter(_by_text()))!r}")
    return [_by_text()[text] for text in texts]


@cache
def _real(texts: tuple[str, ...]) -> Moments:
    """Moments of real clips, the prompts equally often."""
    prompts = _prompts([texts[i % len(texts)] for i in range(REFERENCE_CLIPS)])
    return measure.moments(
        measure.features(render_all(prompts, np.random.default_rng(REFERENCE_SEED), images="held_out"))
    )
