"""AnyFlow on CogVideoX-5B: a student that makes 49 frames at 480 × 720 in any number of steps, arXiv:2605.13724.

    flowmap distill anyflow_cogvideox5b --plan --gpus 8 --memory 80GiB     # what it takes: no weights, no GPU
    flowmap data synth anyflow_cogvideox5b --prompts prompts.txt --out data/cogvideox5b
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_cogvideox5b --out runs/anyflow_cogvideox5b

Nobody published AnyFlow on this model. Published are the network, the size of the video and of its text, and guidance
6. The teacher is variance preserving, on a schedule of 1000 steps: times are those of the linear path, and not
shifted. All else is AnyFlow's for the 14B of Wan2.1: stages, iterations, batch, optimiser, averages, adapters, γ; the
teacher's guidance is the student's. docs/plans/anyflow_cogvideox5b.txt says what that takes. It has not been run.
"""

from __future__ import annotations

from flowmap_diffusers import Diffusers
from flowmap_lora import Lora

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow

MODEL = "THUDM/CogVideoX-5b"  # or a directory with it
DATA = "data/cogvideox5b"  # what `flowmap data` wrote: samples of the teacher
LATENT = (13, 16, 60, 90)  # 49 frames at 480 × 720
COND = {"text": (226, 4096)}  # T5's embeddings, padded; it has no mask
SHIFT, GUIDANCE = 1.0, 6.0
STEPS, ON_POLICY_STEPS, BATCH, MICRO = 4000, 1200, 16, 1  # MICRO: samples on a GPU at once

FORWARD = AdamW(lr=5e-5, betas=(0.9, 0.95), warmup=1000, clip=1.0)
ON_POLICY = AdamW(lr=2e-6, betas=(0.0, 0.999), clip=1.0)

RECIPE = Recipe(
    backbone=Diffusers(
        MODEL, family="cogvideox", lora=Lora(rank=256, alpha=256.0), gamma=0.25, shift=SHIFT, checkpointing=True
    ),
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
            anyflow.on_policy(shift=SHIFT, guidance=GUIDANCE, teacher_guidance=GUIDANCE, steps=(2, 4, 8, 16, 50)),
            steps=ON_POLICY_STEPS,
            batch=BATCH,
            micro=MICRO,
            optimizer=ON_POLICY,
            ema=Ema(decay=0.99, start=200),
        ),
    ),
    data=Sized(LatentFolder(DATA), x=LATENT, cond=COND),
    dtype="bfloat16",
    name="anyflow_cogvideox5b",
)
