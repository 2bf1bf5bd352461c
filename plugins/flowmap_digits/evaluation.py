"""Moving digits judged: by what the classifier reads, by tracked motion, by the distance to real clips.

Each function judges plain clips unless it is given another `Style`; what the classifier reads needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from torch import Tensor

from flowmap import validators
from flowmap.evaluation import Metric, QualityCurve, Samples, endpoint_error, energy_distance_of_latents, variety
from flowmap.evaluation.distances import energy_distance
from flowmap.evaluation.metrics import prompt_by_prompt
from flowmap.rewards import Reward

from . import drift, measure
from .classifier import Moments
from .videos import PLAIN, Style, held_out_prompts, prompts_with, render_all

SHAPE = (5, 4, 8, 8)
"""Nine 32×32 frames as latents of the tiny Wan VAE."""
REFERENCE_CLIPS, REFERENCE_SEED = 1024, 20250602


def curve(*, style: Style = PLAIN, metrics: Sequence[Metric] = (), **settings: Any) -> QualityCurve:
    """The sixteen prompts that no training clip has, beside real clips in handwriting that nothing was trained on.

    style: of the real clips. metrics: more of them, such as `intensity_drift`.
    """
    texts = tuple(prompt.text for prompt in held_out_prompts())
    real = real_clips if style == PLAIN else InStyle(real_clips, style)
    return QualityCurve(texts, (*metrics_of(style), *metrics), SHAPE, real=real, **settings)


def metrics_of(style: Style) -> tuple[Metric, ...]:
    """`METRICS`, those that compare with real clips in the style."""
    if style == PLAIN:
        return METRICS
    styled = (speed_error,)
    return tuple(evolve(m, measure=InStyle(m.measure, style)) if m.measure in styled else m for m in METRICS)


@frozen
class InStyle:
    """A function of this module whose last argument is `style`."""

    function: Callable[..., Any] = field(validator=validators.is_callable())
    style: Style

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments, self.style)


def real_clips(texts: Sequence[str], seed: int, style: Style = PLAIN) -> Tensor:
    """One real clip of each prompt, [N, 9, 3, 32, 32]."""
    rng = np.random.default_rng([REFERENCE_SEED, 1, seed])
    return render_all(prompts_with(texts), rng, images="held_out", style=style)


def frechet(samples: Samples, style: Style = PLAIN) -> float:
    """The distance to real clips of the same prompts, in the classifier's features."""
    here = measure.moments(measure.features(samples.videos))
    return measure.gaussian_frechet(here, _real(tuple(sorted(set(samples.prompts))), style))


def label_accuracy(samples: Samples) -> float:
    """Share of the clips in which the classifier reads the prompt's digit."""
    return measure.label_accuracy(samples.videos, prompts_with(samples.prompts))["digit"]


def direction_accuracy(samples: Samples) -> float:
    """Share of the clips that start the prompt's way."""
    return measure.direction_accuracy(samples.videos, prompts_with(samples.prompts))


def speed_error(samples: Samples, style: Style = PLAIN) -> float:
    """Mean error of the speed, in pixels a frame."""
    return measure.speed_error(samples.videos, prompts_with(samples.prompts), style)


def feature_distance(samples: Samples) -> float:
    """Energy distance to real clips of the same prompt in the classifier's features, mean over prompts."""
    if samples.real is None:
        return math.nan
    here, there = measure.features(samples.videos), measure.features(samples.real.videos)
    return prompt_by_prompt(here, there, samples, energy_distance)


METRICS = (
    energy_distance_of_latents,
    Metric("feature_distance", "lower", feature_distance),
    variety,
    Metric("label_accuracy", "higher", label_accuracy),
    Metric("direction_accuracy", "higher", direction_accuracy),
    Metric("speed_error", "lower", speed_error),
    endpoint_error,
)
frechet_distance = Metric("frechet_distance", "lower", frechet)
"""Of no curve by default: it is mostly bias below some thousand samples."""
intensity_drift = Metric("intensity_drift", "lower", drift.LastChunk(drift.absolute_drift))
"""Mean | ink / ink of the first frame − 1 | in the last two frames: for a student that continues its own output."""


def rewarded(reward: Reward) -> Metric:
    """A reward's mean as a metric of a curve."""
    return Metric(reward.name, "higher", Rewarded(reward))


@frozen
class Rewarded:
    """The mean of a reward over samples."""

    reward: Reward

    def __call__(self, samples: Samples) -> float:
        return float(self.reward(samples.videos, samples.prompts).mean())


@cache
def _real(texts: tuple[str, ...], style: Style) -> Moments:
    """Moments of real clips, the prompts equally often."""
    prompts = prompts_with([texts[i % len(texts)] for i in range(REFERENCE_CLIPS)])
    rng = np.random.default_rng(REFERENCE_SEED)
    return measure.moments(measure.features(render_all(prompts, rng, images="held_out", style=style)))
