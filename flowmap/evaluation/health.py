"""Alarms: when samples are unlike the teacher's in a way that one can name, a sentence says so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from attrs import field, frozen

from .. import validators
from . import vitals
from .metrics import Samples


def _ordered(instance: Limits, attribute: Any, high: float) -> None:
    if not instance.low < high:  # false of nan, too
        raise ValueError(f"Limits.high = {high}: must be above low = {instance.low}")


@frozen
class Limits:
    """A measure from `low` to `high` raises no alarm."""

    low: float = -math.inf
    high: float = field(default=math.inf, validator=_ordered)


def _limits(low: float = -math.inf, high: float = math.inf) -> Any:
    return field(default=Limits(low, high), validator=validators.instance_of(Limits))


@frozen
class Alarms:
    """What the measures of `flowmap.evaluation.vitals` may be; all but three are ratios to the teacher's.

    latent_mean: how far the mean of latents is off, in the teacher's deviations. drift: how much more than the
    teacher's latents change from the first chunk to the last. still: the share of frames that stand still, less
    the teacher's. The paired error has no limit: a student matched to the teacher's distribution may leave its path.

    stop: whether an alarm ends the run, once it was raised by so many previews in a row; 0 is never.
    """

    latent_mean: Limits = _limits(high=0.4)
    latent_deviation: Limits = _limits(0.7, 1.4)
    saturation: Limits = _limits(0.7, 1.4)
    contrast: Limits = _limits(0.7, 1.4)
    grain: Limits = _limits(0.6, 1.6)
    motion: Limits = _limits(0.5, 1.6)
    still: Limits = _limits(high=0.25)
    drift: Limits = _limits(high=0.4)
    variety: Limits = _limits(low=0.5)
    stop: int = field(default=0, validator=validators.ge(0))

    def limits(self) -> dict[str, Limits]:
        return {name: value for name, value in attrs.asdict(self, recurse=False).items() if name != "stop"}

    def told(self) -> dict[str, tuple[float | None, float | None]]:
        """As JSON: (low, high) of each measure, None where there is none."""
        ends = {name: (one.low, one.high) for name, one in self.limits().items()}
        return {
            k: (low if math.isfinite(low) else None, high if math.isfinite(high) else None)
            for k, (low, high) in ends.items()
        }

    def raised(self, values: Mapping[str, float]) -> dict[str, str]:
        """A sentence for each measure that is out of its limits, by its name."""
        return dict(self._raised(values))

    def _raised(self, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if values.get(BROKEN):
            yield BROKEN, f"{values[BROKEN]:.0%} of the samples have numbers that are not finite"
        for name, limits in self.limits().items():
            value = values.get(name, math.nan)
            if value > limits.high or value < limits.low:
                low, high = SENTENCES[name]
                said, limit = (high, limits.high) if value > limits.high else (low, limits.low)
                yield name, f"{said.format(value)} (alarm {'above' if value > limits.high else 'below'} {limit:g})"


BROKEN = "not_finite"
MORE = {
    "saturation": "as saturated as the teacher's",
    "contrast": "as rich in contrast as the teacher's",
    "motion": "as lively as the teacher's",
    "variety": "as varied as the teacher's",
}
SENTENCES: Mapping[str, tuple[str, str]] = {
    "latent_mean": ("", "the mean of the latents is {:.2f} deviations away from the teacher's"),
    "latent_deviation": (
        "latents spread only {:.2f} × as far as the teacher's",
        "latents spread {:.2f} × as far as the teacher's",
    ),
    "saturation": (
        "samples are only {:.2f} × as saturated as the teacher's",
        "samples are {:.2f} × as saturated as the teacher's",
    ),
    "contrast": (
        "samples have only {:.2f} × the contrast of the teacher's",
        "samples have {:.2f} × the contrast of the teacher's",
    ),
    "grain": (
        "samples have only {:.2f} × the fine detail of the teacher's: they are blurred",
        "samples have {:.2f} × the fine detail of the teacher's: they are noisy",
    ),
    "motion": ("samples move only {:.2f} × as much as the teacher's", "samples move {:.2f} × as much as the teacher's"),
    "still": ("", "{:.0%} more of the frames stand still than in the teacher's samples"),
    "drift": (
        "",
        "from the first chunk to the last, latents drift by {:.2f} of their deviation more than the teacher's",
    ),
    "variety": (
        "samples of one prompt are only {:.2f} × as varied as the teacher's",
        "samples of one prompt are {:.2f} × as varied as the teacher's",
    ),
}
"""Below the limit, above it."""


def measured(made: Samples, teacher: Samples, chunks: Sequence[int]) -> dict[str, float]:
    """Every measure that applies, by its name. chunks: the latent frames that are made together, `FlowMap.chunks`.

    Both are of the same noise and prompts; videos [N, 0, ...] where there is no codec. Samples that are not finite are
    counted, and left out with their partners.
    """
    good = made.latents.flatten(1).isfinite().all(1)
    broken = {} if bool(good.all()) else {BROKEN: 1 - float(good.double().mean())}
    rows = good.nonzero()[:, 0]
    if not len(rows):
        return broken
    x, y = made.latents[rows], teacher.latents[rows]
    found = broken | vitals.of_latents(x, y, [made.prompts[k] for k in rows.tolist()], chunks)
    if made.videos.shape[1]:
        found |= vitals.of_pictures(
            made.videos[rows.to(made.videos.device)], teacher.videos[rows.to(teacher.videos.device)]
        )
    return vitals.finite(found)
