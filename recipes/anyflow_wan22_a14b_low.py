"""AnyFlow on the low expert of Wan2.2-T2V-A14B, on top of the high one's student, arXiv:2605.13724.

    flowmap distill anyflow_wan22_a14b_low --plan --gpus 8 --memory 141GiB     # what it takes: no weights, no GPU
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_wan22_a14b_low --out runs/anyflow_wan22_a14b_low

The second of two runs, with the data of the first, anyflow_wan22_a14b_high, which says what was published. Its stage 2
trains on the states at the boundary that the high student makes. What comes out is the pair, a `WanPipeline` of both
for any number of steps from 2. docs/plans/anyflow_wan22_a14b_low.txt says what that takes: the first GPU writes the
pair whole, which is more than 80 GiB. It has not been run.
"""

from __future__ import annotations

from anyflow_wan22_a14b_high import BOUNDARY, DATA, LATENT, MODEL, SHIFT, TEXT, stages
from flowmap_wan21 import Experts, Lora, Wan21

from flowmap import Recipe
from flowmap.data import LatentFolder, Sized

HIGH = "runs/anyflow_wan22_a14b_high/student"
LORA = Lora(rank=256, alpha=256.0)

RECIPE = Recipe(
    backbone=Experts(
        high=Wan21(HIGH, expert="high", lora=None, shift=SHIFT),
        low=Wan21(MODEL, expert="low", lora=LORA, gamma=0.25, shift=SHIFT, checkpointing=True),
    ),
    stages=stages(within=(0.0, BOUNDARY), guidance=3.0),
    data=Sized(LatentFolder(DATA), x=LATENT, cond={"text": TEXT}),
    dtype="bfloat16",
    name="anyflow_wan22_a14b_low",
)
