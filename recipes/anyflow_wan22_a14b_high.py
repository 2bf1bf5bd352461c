"""AnyFlow on the high expert of Wan2.2-T2V-A14B: the first of two runs, arXiv:2605.13724.

    flowmap distill anyflow_wan22_a14b_high --plan --gpus 8 --memory 80GiB     # what it takes: no weights, no GPU
    flowmap data synth Wan-AI/Wan2.2-T2V-A14B-Diffusers --prompts prompts.txt --guidance 4 --out data/wan22_a14b
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_wan22_a14b_high --out runs/anyflow_wan22_a14b_high

Its student goes from noise to the boundary and no further: anyflow_wan22_a14b_low begins with it, and ends with the
pair. Nobody published AnyFlow on this model. Published are the networks, the boundary, the shift 12 and the guidance of
each expert, 4 and 3, which is the student's and the teacher's here. All else is AnyFlow's for the 14B of Wan2.1.
docs/plans/anyflow_wan22_a14b_high.txt says what that takes. It has not been run.
"""

from __future__ import annotations

from flowmap_wan21 import Lora, Wan21

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow

MODEL = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"  # or a directory with it
DATA = "data/wan22_a14b"  # what `flowmap data` wrote: samples of both experts
LATENT, TEXT = (21, 16, 60, 104), (512, 4096)  # 81 frames at 480 × 832; umT5's embeddings
BOUNDARY, SHIFT = 0.875, 12.0
STEPS, ON_POLICY_STEPS, BATCH, MICRO = 4000, 1200, 16, 1  # MICRO: samples on a GPU at once

FORWARD = AdamW(lr=5e-5, betas=(0.9, 0.95), warmup=1000, clip=1.0)
ON_POLICY = AdamW(lr=2e-6, betas=(0.0, 0.999), clip=1.0)


def stages(within: tuple[float, float], guidance: float) -> tuple[Stage, ...]:
    """Of the expert of these times."""
    common = {"batch": BATCH, "micro": MICRO}
    first = {**common, "steps": STEPS, "optimizer": FORWARD, "ema": Ema(decay=0.999, start=1000)}
    own = {"shift": SHIFT, "guidance": guidance, "within": within}
    return (
        Stage(anyflow.teacher(shift=SHIFT, within=within), **first),
        Stage(anyflow.forward(**own), **first),
        Stage(
            anyflow.on_policy(**own, teacher_guidance=guidance, steps=(2, 4, 8, 16, 50)),
            **common,
            steps=ON_POLICY_STEPS,
            optimizer=ON_POLICY,
            ema=Ema(decay=0.99, start=200),
        ),
    )


RECIPE = Recipe(
    backbone=Wan21(MODEL, expert="high", lora=Lora(rank=256, alpha=256.0), gamma=0.25, shift=SHIFT, checkpointing=True),
    stages=stages(within=(BOUNDARY, 1.0), guidance=4.0),
    data=Sized(LatentFolder(DATA), x=LATENT, cond={"text": TEXT}),
    dtype="bfloat16",
    name="anyflow_wan22_a14b_high",
)
