"""Stages 1 and 2 of AnyFlow on Wan2.1-T2V-14B, arXiv:2605.13724, on one GPU of 24 GiB.

    flowmap distill anyflow_wan14b_24gib --plan --gpus 1 --memory 24GiB     # what it takes: no weights, no GPU

As `anyflow_wan14b_48gib`, with adapters of rank 64 in place of 256, which is another student.
docs/plans/anyflow_wan14b_24gib.txt says what that takes, in time too. It has not been run.
"""

from __future__ import annotations

from anyflow_wan14b_48gib import RECIPE as LARGER
from attrs import evolve
from flowmap_wan21 import Lora

RECIPE = evolve(
    LARGER,
    backbone=evolve(LARGER.backbone, lora=Lora(rank=64, alpha=64.0)),
    name="anyflow_wan14b_24gib",
)
