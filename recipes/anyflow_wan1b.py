"""AnyFlow on Wan2.1-T2V-1.3B: a student that makes 81 frames at 480 × 832 in any number of steps, arXiv:2605.13724.

    flowmap distill anyflow_wan1b --plan --gpus 8 --memory 80GiB     # what it takes: no weights, no GPU
    flowmap data synth anyflow_wan1b --prompts prompts.txt --out data/wan1b
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_wan1b --out runs/anyflow_wan1b

The published settings, but where the paper's code and its text differ or the code loses something: docs/large.md lists
both. Stage 0 fine-tunes the teacher on its own samples, stage 1 makes a flow map of the network as it was published,
stage 2 matches the teacher's distribution on the student's own rollouts. Teacher, student and critic are adapters of
rank 256 on one frozen base. docs/plans/anyflow_wan1b.txt says what that takes.
"""

from __future__ import annotations

from flowmap_wan21 import Lora, Wan21

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow

MODEL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # or a directory with it
DATA = "data/wan1b"  # what `flowmap data` wrote: 256 000 samples of the teacher, in the paper
LATENT, TEXT = (21, 16, 60, 104), (512, 4096)  # 81 frames at 480 × 832; umT5's embeddings
SHIFT, GUIDANCE, TEACHER_GUIDANCE = 5.0, 3.0, 4.0
STEPS, ON_POLICY_STEPS, BATCH, MICRO = 6000, 1200, 32, 2  # MICRO: samples on a GPU at once

FORWARD = AdamW(lr=5e-5, betas=(0.9, 0.95), warmup=1000, clip=1.0)
ON_POLICY = AdamW(lr=2e-6, betas=(0.0, 0.999), clip=1.0)

RECIPE = Recipe(
    backbone=Wan21(MODEL, lora=Lora(rank=256, alpha=256.0), gamma=0.25, shift=SHIFT, checkpointing=True),
    stages=(
        Stage(
            anyflow.teacher(shift=SHIFT),
            steps=STEPS,
            batch=BATCH,
            micro=MICRO,
            optimizer=FORWARD,
            ema=Ema(decay=0.999, start=1000),
        ),
        Stage(
            anyflow.forward(shift=SHIFT, guidance=GUIDANCE),
            steps=STEPS,
            batch=BATCH,
            micro=MICRO,
            optimizer=FORWARD,
            ema=Ema(decay=0.999, start=1000),
        ),
        Stage(
            anyflow.on_policy(
                shift=SHIFT, guidance=GUIDANCE, teacher_guidance=TEACHER_GUIDANCE, steps=(2, 4, 8, 16, 50)
            ),
            steps=ON_POLICY_STEPS,
            batch=BATCH,
            micro=MICRO,
            optimizer=ON_POLICY,
            ema=Ema(decay=0.99, start=200),
        ),
    ),
    data=Sized(LatentFolder(DATA), x=LATENT, cond={"text": TEXT}),
    dtype="bfloat16",
    name="anyflow_wan1b",
)
