"""How published weights are meant.

A publisher's file has tensors and no word of chunks, noise levels and guidance: these are its `Layout`'s to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from attrs import frozen

from ..model import Sampling
from .weights import Weights


@frozen
class Brought:
    """A student of others: how it is sampled, and of the latents that it was trained on, (F, C, H, W), where known.

    note: what was taken for granted, in a clause.
    """

    sampling: Sampling
    latent: tuple[int, int, int, int] | None = None
    note: str = ""


@runtime_checkable
class Layout(Protocol):
    """One publisher's weights: what they are called, and how they are meant."""

    @property
    def about(self) -> str:
        """What it is, in a line."""

    def claims(self, found: Weights) -> bool:
        """Whether the file itself says that it is of this layout, and of no other."""

    def write(self, found: Weights, base: str, out: Path) -> Brought | None:
        """Fill the directory `out`, with all but the network from the pipeline `base`: a student, of which it
        tells, or a diffusion model, None.

        A `WeightsError` or a `ValueError` for what does not fit, before anything is written.
        """
