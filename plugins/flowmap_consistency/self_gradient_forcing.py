"""Self Gradient Forcing: Self-Forcing whose gradient reaches how history is written, arXiv:2607.20368."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from flowmap import Ema, Recipe, Stage, Window
from flowmap.chunked import HistoryGrad
from flowmap.method import Method
from flowmap.methods.citations import SELF_GRADIENT_FORCING
from flowmap.methods.flow_matching import flow_matching
from flowmap.times import Steps

from .scale import Scale
from .self_forcing import OPTIMIZER, self_forcing

__all__ = ["OPTIMIZER"]  # published: those of Self-Forcing, with a global batch of 8
EMA = Ema(0.99, 200)
ITERATIONS = {1: 1500, 3: 1200}
"""Published, by the frames of a chunk; a fifth of them are updates of the student."""
WINDOW = {1: Window(4, 16), 3: Window(1, 2)}
"""What it is sampled with, by the frames of a chunk, 21 and 12 frames with the one that is made; and, but for a few
frames, trained with, `Far(window=...)`."""


def initialisation(*, shift: float = 5.0, drop: float = 0.1) -> Method:
    """The stage before: a causal diffusion model of many steps, teacher-forced; not a consistency model."""
    return flow_matching(role="student", shift=shift, drop=drop)


def self_gradient_forcing(
    *,
    number: Steps = 4,
    shift: float = 5.0,
    w: float = 4.0,
    every: int = 5,
    replay: bool = False,
    history_grad: HistoryGrad = True,
    history_noise: float = 0.0,
) -> Method:
    """`self_forcing` with `history_grad`: a loss on later chunks teaches how the ones before are remembered.

    A chunk is remembered detached, at time 0; its keys and values, and all below them, have a graph. The form: see
    `flowmap.chunked.HistoryGrad`, with `replay` the one chunk by chunk. Calls: those of `self_forcing`, of the
    student's rollout the history with a graph; "packed" 1 F a jump more and its G on twice the tokens.
    """
    remembers: dict[str, Any] = {"replay": replay, "history_grad": history_grad, "history_noise": history_noise}
    made = self_forcing(number=number, shift=shift, w=w, every=every, **remembers)
    return evolve(made, name="self_gradient_forcing", citations=(SELF_GRADIENT_FORCING, *made.citations))


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """The length of the recipe's first stage for the causal model; then as many student updates as its last."""
    scale = Scale.of(recipe)
    first, second = initialisation(shift=scale.shift), self_gradient_forcing(shift=scale.shift, w=scale.guidance)
    return scale.regression(first), scale.alternating(second, 5)
