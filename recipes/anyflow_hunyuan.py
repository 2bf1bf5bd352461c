"""AnyFlow on HunyuanVideo: a student that makes 129 frames at 544 × 960 in any number of steps, arXiv:2605.13724.

    flowmap distill anyflow_hunyuan --plan --gpus 8 --memory 141GiB     # what it takes: no weights, no GPU
    flowmap data synth anyflow_hunyuan --prompts prompts.txt --out data/hunyuan
    torchrun --nproc-per-node 8 -m flowmap distill anyflow_hunyuan --out runs/anyflow_hunyuan

Nobody published AnyFlow on this model. Published are the network, the size of the video, the smaller of its two, and
of its text, the shift and the embedded guidance 6. Guidance was distilled into it: the student learns the teacher's
own velocity, w = 1, and no prompt is dropped. There is no stage 0, which would teach the teacher another flow than the
one that made its samples. All else is AnyFlow's for the 14B of Wan2.1: iterations, batch, optimiser, averages,
adapters, γ. docs/plans/anyflow_hunyuan.txt says what that takes. It has not been run.
"""

from __future__ import annotations

from flowmap_diffusers import Diffusers
from flowmap_lora import Lora

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow

MODEL = "hunyuanvideo-community/HunyuanVideo"  # or a directory with it
DATA = "data/hunyuan"  # what `flowmap data` wrote: samples of the teacher
LATENT = (33, 16, 68, 120)  # 129 frames at 544 × 960
COND = {"text": (256, 4096), "mask": (256,), "pooled": (768,), "guidance": ()}  # Llama's, CLIP's
SHIFT, EMBEDDED = 7.0, 6.0
STEPS, ON_POLICY_STEPS, BATCH, MICRO = 4000, 1200, 16, 1  # MICRO: samples on a GPU at once

FORWARD = AdamW(lr=5e-5, betas=(0.9, 0.95), warmup=1000, clip=1.0)
ON_POLICY = AdamW(lr=2e-6, betas=(0.0, 0.999), clip=1.0)

RECIPE = Recipe(
    backbone=Diffusers(
        MODEL,
        family="hunyuan_video",
        lora=Lora(rank=256, alpha=256.0),
        gamma=0.25,
        shift=SHIFT,
        guidance=EMBEDDED,
        checkpointing=True,
    ),
    stages=(
        Stage(
            anyflow.forward(shift=SHIFT, guidance=1.0, drop=0.0, velocity="teacher"),
            steps=STEPS,
            batch=BATCH,
            micro=MICRO,
            optimizer=FORWARD,
            ema=Ema(decay=0.999, start=1000),
        ),
        Stage(
            anyflow.on_policy(
                shift=SHIFT, guidance=1.0, teacher_guidance=1.0, drop=0.0, velocity="teacher", steps=(2, 4, 8, 16, 50)
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
    name="anyflow_hunyuan",
)
