"""AnyFlow on Wan2.1-I2V-14B: a student that makes 81 frames at 480 × 832 from an image in any number of steps.

    flowmap distill anyflow_wan_i2v14b --plan --gpus 8 --memory 80GiB     # what it takes: no weights, no GPU
    flowmap data encode clips --backbone Wan-AI/Wan2.1-I2V-14B-480P-Diffusers --out data/wan_i2v14b
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_wan_i2v14b --out runs/anyflow_wan_i2v14b

Nobody published AnyFlow on this model. Published are the network, the size of the video, of its text and of the
features of its image, and the shift for it. All else is AnyFlow's for the 14B from text, arXiv:2605.13724: iterations,
batch, optimiser, averages, adapters, γ, guidance, which leaves the image in both branches. The network for 720 lines is
the same with other weights: MODEL, LATENT = (21, 16, 90, 160) and SHIFT = 5. docs/plans/anyflow_wan_i2v14b.txt says
what it takes. It has not been run.
"""

from __future__ import annotations

from flowmap_diffusers import Diffusers
from flowmap_lora import Lora

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow

MODEL = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"  # or a directory with it
DATA = "data/wan_i2v14b"  # what `flowmap data` wrote: clips, or samples of the teacher with their images
LATENT = (21, 16, 60, 104)  # 81 frames at 480 × 832
COND = {"text": (512, 4096), "image": (257, 1280), "first": (21, 20, *LATENT[2:])}  # umT5's, CLIP's, mask and latents
SHIFT, GUIDANCE, TEACHER_GUIDANCE = 3.0, 3.0, 4.0
STEPS, ON_POLICY_STEPS, BATCH, MICRO = 4000, 1200, 16, 1  # MICRO: samples on a GPU at once

FORWARD = AdamW(lr=5e-5, betas=(0.9, 0.95), warmup=1000, clip=1.0)
ON_POLICY = AdamW(lr=2e-6, betas=(0.0, 0.999), clip=1.0)

RECIPE = Recipe(
    backbone=Diffusers(
        MODEL, family="wan_i2v", lora=Lora(rank=256, alpha=256.0), gamma=0.25, shift=SHIFT, checkpointing=True
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
    data=Sized(LatentFolder(DATA), x=LATENT, cond=COND),
    dtype="bfloat16",
    name="anyflow_wan_i2v14b",
)
