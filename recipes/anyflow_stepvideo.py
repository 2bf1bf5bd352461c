"""AnyFlow on Step-Video-T2V: a student that makes 136 frames at 544 × 992 in any number of steps, arXiv:2605.13724.

    flowmap distill anyflow_stepvideo --plan --gpus 8 --memory 141GiB     # what it takes: no weights, no GPU
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_stepvideo --out runs/anyflow_stepvideo

Its text encoders and its VAE are not here: docs/backbones.md says how latents and texts that were made elsewhere become
the data below.

Nobody published AnyFlow on this model. Published are the network, the sizes of a video and of its texts, shift 13 and
guidance 9, arXiv:2502.10248; its largest video, 204 frames, takes 195 GiB on each of 8 GPUs. All else is AnyFlow's for
the 14B of Wan2.1: iterations, batch, optimiser, averages, adapters, γ. docs/plans/anyflow_stepvideo.txt says what that
takes. It has not been run.
"""

from __future__ import annotations

from flowmap_diffusers import Diffusers
from flowmap_lora import Lora

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow

MODEL = "stepfun-ai/stepvideo-t2v"  # or a directory with it
DATA = "data/stepvideo"
LATENT = (24, 64, 34, 62)  # 136 frames at 544 × 992: 3 of every 17
COND = {"text": (320, 6144), "clip": (77, 1024), "mask": (320,)}  # Step-LLM's, Hunyuan-CLIP's
SHIFT, GUIDANCE = 13.0, 9.0
STEPS, ON_POLICY_STEPS, BATCH, MICRO = 4000, 1200, 16, 1  # MICRO: samples on a GPU at once

FORWARD = AdamW(lr=5e-5, betas=(0.9, 0.95), warmup=1000, clip=1.0)
ON_POLICY = AdamW(lr=2e-6, betas=(0.0, 0.999), clip=1.0)

RECIPE = Recipe(
    backbone=Diffusers(
        MODEL, family="step_video", lora=Lora(rank=256, alpha=256.0), gamma=0.25, shift=SHIFT, checkpointing=True
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
    name="anyflow_stepvideo",
)
