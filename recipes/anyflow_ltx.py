"""AnyFlow on LTX-Video 0.9: a student that makes 161 frames at 512 × 704 in any number of steps, arXiv:2605.13724.

    flowmap distill anyflow_ltx --plan --gpus 8 --memory 80GiB     # what it takes: no weights, no GPU
    flowmap data synth anyflow_ltx --prompts prompts.txt --out data/ltx
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_ltx --out runs/anyflow_ltx

Nobody published AnyFlow on this model. Published are the network, the size of the video and of its text, the shift (of
the largest size between whose shifts the pipeline interpolates) and guidance 3. All else is AnyFlow's for the 1.3B of
Wan2.1: stages, iterations, batch, optimiser, averages, adapters, γ; the teacher's guidance is the student's.
docs/plans/anyflow_ltx.txt says what that takes. It has not been run.
"""

from __future__ import annotations

from flowmap_diffusers import Diffusers
from flowmap_lora import Lora

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow

MODEL = "Lightricks/LTX-Video"  # or a directory with it
DATA = "data/ltx"  # what `flowmap data` wrote: samples of the teacher
LATENT = (21, 128, 16, 22)  # 161 frames at 512 × 704
COND = {"text": (128, 4096), "mask": (128,)}  # T5's embeddings, padded
SHIFT, GUIDANCE = 7.77, 3.0
STEPS, ON_POLICY_STEPS, BATCH, MICRO = 6000, 1200, 32, 2  # MICRO: samples on a GPU at once

FORWARD = AdamW(lr=5e-5, betas=(0.9, 0.95), warmup=1000, clip=1.0)
ON_POLICY = AdamW(lr=2e-6, betas=(0.0, 0.999), clip=1.0)

RECIPE = Recipe(
    backbone=Diffusers(
        MODEL, family="ltx", lora=Lora(rank=256, alpha=256.0), gamma=0.25, shift=SHIFT, checkpointing=True
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
    name="anyflow_ltx",
)
