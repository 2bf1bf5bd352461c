"""APT 2: one call a chunk, trained against real videos on the student's own history, arXiv:2506.09350."""

from __future__ import annotations

from collections.abc import Mapping

from flowmap import AdamW, Recipe, Stage
from flowmap._types import Role
from flowmap.method import Method, Update
from flowmap.methods.flow_matching import flow_matching
from flowmap.rollout import ConsistencySimulation
from flowmap.times import Diagonal

from .apt import HEADS, OPTIMIZER
from .citations import AAPT, APT, R3GAN
from .consistency import training
from .heads import Heads
from .relativistic import RelativisticAdversarial, RelativisticDiscrimination, Segments
from .scale import Scale

__all__ = ["OPTIMIZER"]  # that of APT
SMALL: Mapping[Role, AdamW] = {"student": AdamW(3e-5, (0.0, 0.9)), "critic": AdamW(1e-4, (0.0, 0.9))}
"""Of the digits."""


def aapt(
    *,
    shift: float = 5.0,
    r1: float = 100.0,
    r2: float = 100.0,
    sigma: float = 0.1,
    segments: int = 1,
    overlap: int = 1,
    heads: Heads = HEADS,
    replay: bool = False,
    history_noise: float = 0.0,
) -> Method:
    """After a causal diffusion model and its consistency distillation, without guidance: x^k = ε^k - u(ε^k, 1, 0), one
    call a chunk, after the student's own detached chunks, whose keys and values have a graph (student forcing),

        L_G = E softplus(D(x) - D(x̃)),     L_D = E softplus(D(x̃) - D(x)) + λ₁ R1 + λ₂ R2,

    with R1 and R2 approximated as in APT. D is the critic with `heads`, a logit for each chunk after those before it;
    of `Far(causal_critic=True)` its backbone is causal, too. segments: the length of the student's video in clips,
    judged in pieces that share `overlap` frames. replay: hold the graph of one chunk at a time. λ and σ: those of APT.

    Calls a sample and segment: 1 G and 1 F of the student, 1 F + 1 G and 4 G of the critic; each with the history.
    """
    rollout, times = ConsistencySimulation((1.0,), replay, True, history_noise), Diagonal(shift=shift)
    pieces = Segments(segments, overlap)
    fool = RelativisticAdversarial(rollout, heads, times, pieces)
    tell = RelativisticDiscrimination(rollout, heads, times, pieces, r1, r2, sigma)
    updates = (Update("student", ((1.0, fool),)), Update("critic", ((1.0, tell),)))
    return Method("aapt", updates, (AAPT, APT, R3GAN), sampler="consistency", guidance=1.0)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """A causal model and consistency, each for half of the recipe's regression, of data alone; then its last stage."""
    scale = Scale.of(recipe)
    first = scale.regression(flow_matching(role="student", shift=scale.shift, drop=0.0), 0.5)
    then = scale.regression(training(shift=scale.shift), 0.5)
    return first, then, scale.alternating(aapt(shift=scale.shift, r1=10.0, r2=10.0), 1)
