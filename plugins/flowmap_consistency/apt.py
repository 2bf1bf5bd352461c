"""APT: one step, trained against real videos, arXiv:2501.08316."""

from __future__ import annotations

from collections.abc import Mapping

from flowmap import AdamW, Recipe, Stage
from flowmap._types import Role
from flowmap.method import Method, Update
from flowmap.rollout import ConsistencySimulation
from flowmap.times import Diagonal

from .adversarial import Adversarial, Discrimination
from .citations import APT, CONSISTENCY
from .consistency import DiscreteConsistency, Neighbours
from .heads import Heads
from .scale import Scale

OPTIMIZER: Mapping[Role, AdamW] = {role: AdamW(3e-6, (0.0, 0.9)) for role in ("student", "critic")}
"""RMSProp there, α = 0.9: Adam without a first moment. For images 5e-6. `Ema(0.995, 0)`, a few hundred iterations."""

HEADS = Heads(depths=(16 / 36, 26 / 36, 1.0), pool="query")
"""Layers 16, 26 and 36 of 36."""

ONE_STEP = ConsistencySimulation((1.0,))
"""x = ε - u(ε, 1, 0)."""


def initialisation(*, grid: int = 48, shift: float = 5.0, w: float = 5.0) -> Method:
    """First discrete consistency distillation of the guided teacher, mean squares: one step is then blurred, but right.

    w is built in here, and in no later stage.
    """
    matching = DiscreteConsistency(Neighbours(grid, 1, shift), "teacher", w=w)
    updates = (Update("student", ((1.0, matching),)),)
    return Method("apt_initialisation", updates, (APT, CONSISTENCY), sampler="consistency", guidance=w)


def apt(*, shift: float = 5.0, r1: float = 100.0, sigma: float = 0.1, heads: Heads = HEADS) -> Method:
    """Then, adversarially alone: x = G_θ(ε) = ε - u_θ(ε, 1, 0), and D the whole critic with `heads`,

        L_G = E softplus(-D(x, t)),
        L_D = E softplus(-D(x_data, t)) + E softplus(D(x, t)) + λ E |D(x_data, t) - D(x_data + σ n, t)|²,

    on clean samples, with a t that is drawn, shifted, and no more than a condition. λ = `r1`; σ = `sigma`, for images
    0.01. One update each an iteration; the critic, a copy of the diffusion network, is no score of anything.

    Calls a sample: 1 G and 1 F of the student, 1 G and 3 G of the critic.
    """
    times = Diagonal(shift=shift)
    fool = Adversarial(ONE_STEP, heads, times, noised=False)
    tell = Discrimination(ONE_STEP, heads, times, noised=False, r1=r1, sigma=sigma)
    updates = (Update("student", ((1.0, fool),)), Update("critic", ((1.0, tell),)))
    return Method("apt", updates, (APT,), sampler="consistency")


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Consistency first, as long as the recipe's regression; then its on-policy stage, on data instead of a teacher."""
    scale = Scale.of(recipe)
    first = initialisation(shift=scale.shift, w=scale.guidance)
    return scale.regression(first), scale.alternating(apt(shift=scale.shift), 1)
