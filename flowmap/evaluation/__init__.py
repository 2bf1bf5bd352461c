"""Quality against the number of steps: measured, drawn, shown and written down."""

from __future__ import annotations

from .curve import QualityCurve
from .health import Alarms, Limits
from .metrics import Metric, Samples, endpoint_error, energy_distance_of_latents, variety
from .watching import Previews

__all__ = [
    "Alarms",
    "Limits",
    "Metric",
    "Previews",
    "QualityCurve",
    "Samples",
    "endpoint_error",
    "energy_distance_of_latents",
    "variety",
]
