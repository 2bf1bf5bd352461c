"""DMD2: distribution matching with simulated inputs, a fast critic and a GAN on data, arXiv:2405.14867."""

from __future__ import annotations

from collections.abc import Mapping

from flowmap import AdamW, Recipe, Stage
from flowmap._types import Role
from flowmap.method import Method, Update
from flowmap.methods.citations import DMD
from flowmap.objectives import Objective
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.rollout import ConsistencySimulation
from flowmap.times import Diagonal

from .adversarial import Adversarial, Discrimination, OneRollout
from .citations import DMD2
from .heads import Heads
from .scale import Scale
from .self_forcing import step_list

OPTIMIZER: Mapping[Role, AdamW] = {role: AdamW(5e-7, (0.9, 0.999), 0.01) for role in ("student", "critic")}
"""Published for SDXL, whole networks; 5e-5 with adapters. A port to Wan takes 1e-5, a batch of 64, 6000 iterations."""

HEADS = Heads(depths=(16 / 30, 23 / 30, 1.0), pool="mean")
"""In the paper on the middle of a U-Net, which a transformer has not: that port's layers 15, 22, 29 of Wan's 30."""


def dmd2(
    *,
    number: int = 4,
    shift: float = 5.0,
    w: float = 5.0,
    every: int = 5,
    gan: float = 5e-3,
    gan_critic: float = 1e-2,
    heads: Heads = HEADS,
    r1: float = 0.0,
    sigma: float = 0.1,
    replay: bool = False,
) -> Method:
    """The student's loss, and the critic's, with samples x = G_θ(ε) of `ConsistencySimulation`:

        ½ |x - sg(x - g)|²  +  gan · E softplus(-D(x_t, t)),
        |v_critic(x_t) - (ε - x)|²  +  gan_critic · E [softplus(-D(x_t^data, t)) + softplus(D(x_t, t))],

    where g is `DistributionMatching`'s direction, t in [0.02, 0.98], and D the critic with `heads`, at t in [0, 1].
    Inputs are the student's own: a rollout ends at one of its `number` steps, and that jump alone has a gradient. The
    critic learns in every iteration, from samples of its own, the student in one of `every`. `gan=0` leaves D and the
    data out. Weights are those for SDXL (ImageNet: 3e-3 and 1e-2; the port to Wan: 0.03 for the student, and `r1` of
    100 to 1000 at `sigma` 0.1), w that of the port (SDXL: 8). The critic's loss is of ε there, of v here.

    Calls a sample and `every` = 5 iterations: 1 G + 1.5 F and 5 · 2.5 F of the student, 2 F of the teacher, 1 F + 1 G
    and 5 · (1 + 2) G of the critic (5 · (1 + 3) with R1); without the GAN 1 F and 5 G.
    """
    rollout = ConsistencySimulation(step_list(number, shift), replay)
    matching = DistributionMatching(rollout, Diagonal(shift=shift, low=0.02, high=0.98), w, floor=0.0)
    critic = CriticMatching(rollout, Diagonal(shift=shift))
    learns: tuple[float, Objective] = (0.5, matching)
    judges: tuple[float, Objective] = (1.0, critic)
    if gan or gan_critic:
        fool = Adversarial(rollout, heads, Diagonal(shift=shift))
        tell = Discrimination(rollout, heads, Diagonal(shift=shift), r1=r1, sigma=sigma)
        learns = (1.0, OneRollout(((0.5, matching), (gan, fool))))
        judges = (1.0, OneRollout(((1.0, critic), (gan_critic, tell)), gradient=False))
    updates = (Update("student", (learns,), every=every), Update("critic", (judges,)))
    return Method("dmd2", updates, (DMD2, DMD), sampler="consistency", guidance=w)


def stages(recipe: Recipe, number: int = 4) -> tuple[Stage, ...]:
    """From the teacher as it is: as many updates of the student as the recipe's own on-policy stage has."""
    scale = Scale.of(recipe)
    return (scale.alternating(dmd2(number=number, shift=scale.shift, w=scale.guidance), 5),)
