"""AnyFlow on Qwen-Image: a student that makes an image of 1328 × 1328 in any number of steps, arXiv:2605.13724.

    flowmap distill anyflow_qwen_image --plan --gpus 8 --memory 141GiB    # what it takes: no weights, no GPU
    flowmap data synth anyflow_qwen_image --prompts prompts.txt --out data/qwen_image
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_qwen_image --out runs/anyflow_qwen_image

Nobody published AnyFlow on this model. Published are the network, the size of the image and of its text, and guidance
4. The published shift depends on the size; 3 is the family's here. All else is AnyFlow's for the 14B of Wan2.1:
stages, iterations, batch, optimiser, averages, adapters, γ; the teacher's guidance is the student's.
docs/plans/anyflow_qwen_image.txt says what that takes. It has not been run.
"""

from __future__ import annotations

from flowmap_diffusers import Diffusers
from flowmap_lora import Lora

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow

MODEL = "Qwen/Qwen-Image"  # or a directory with it
DATA = "data/qwen_image"  # what `flowmap data` wrote: samples of the teacher
LATENT = (1, 16, 166, 166)  # 1328 × 1328
COND = {"text": (512, 3584), "mask": (512,)}  # Qwen2.5-VL's states, padded
SHIFT, GUIDANCE = 3.0, 4.0
STEPS, ON_POLICY_STEPS, BATCH, MICRO = 4000, 1200, 16, 1  # MICRO: samples on a GPU at once

FORWARD = AdamW(lr=5e-5, betas=(0.9, 0.95), warmup=1000, clip=1.0)
ON_POLICY = AdamW(lr=2e-6, betas=(0.0, 0.999), clip=1.0)

RECIPE = Recipe(
    backbone=Diffusers(
        MODEL, family="qwen_image", lora=Lora(rank=256, alpha=256.0), gamma=0.25, shift=SHIFT, checkpointing=True
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
    name="anyflow_qwen_image",
)
