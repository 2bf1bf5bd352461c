"""Stages 1 and 2 of AnyFlow on Wan2.1-T2V-14B, arXiv:2605.13724, on one GPU of 48 GiB.

    flowmap distill anyflow_wan14b_48gib --plan --gpus 1 --memory 48GiB     # what it takes: no weights, no GPU

As `anyflow_wan14b`, but for what saves memory: the frozen base in int8, the optimiser's moments in 8 bits, frozen
weights and the inputs of recomputed blocks in the host's memory, and no stage 0, which trains adapters of a third role.
It has not been run.
"""

from __future__ import annotations

from anyflow_wan14b import RECIPE as LARGE
from attrs import asdict, evolve

from flowmap import AdamW, AdamW8bit, Stage


def low(stage: Stage) -> Stage:
    """With moments in 8 bits."""
    assert isinstance(stage.optimizer, AdamW)
    return evolve(stage, optimizer=AdamW8bit(**asdict(stage.optimizer)))


RECIPE = evolve(
    LARGE,
    backbone=evolve(LARGE.backbone, base="int8"),
    stages=tuple(map(low, LARGE.stages[1:])),
    offload="both",
    name="anyflow_wan14b_48gib",
)
