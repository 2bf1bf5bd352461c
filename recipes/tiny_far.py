"""A student that makes the moving digits chunk after chunk, distilled from the bidirectional teacher of the quickstart.

    flowmap distill tiny_far --out runs/tiny_far

Five chunks of one latent frame (two video frames; the first, one): the last three at full resolution, older ones
compressed. Stage 1 trains on clean history, stage 2 on what the student itself made, judged on the whole video by the
bidirectional teacher. `python -m benchmarks.drift runs/tiny_far --out DIR` compares the two, chunk by chunk.
"""

from __future__ import annotations

from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve
from flowmap_far import Far

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.methods import anyflow

SHIFT, GUIDANCE = 1.0, 3.0
H = 5e-3  # in float32 better at many steps than the default, and worse at one: docs/methods.md
FORWARD_STEPS, FORWARD_BATCH, FORWARD_LR = 3000, 32, 1e-3
ON_POLICY_STEPS, ON_POLICY_BATCH, ON_POLICY_LR, CRITIC_LR = 300, 32, 1e-4, 3e-4
COTRAIN = 12.0  # so few steps at so high a rate would lose the many-step end of the curve at weight 1
CLIPS = 8192
SEEDS, SAMPLES = (0, 1, 2, 3, 4), 64

RECIPE = Recipe(
    backbone=Far(TINY_WAN, lora=None, text_tokens=12, shift=SHIFT, partition=(1, 1, 1, 1, 1), long=1.0),
    stages=(
        Stage(
            anyflow.forward(shift=SHIFT, guidance=GUIDANCE, h=H),
            steps=FORWARD_STEPS,
            batch=FORWARD_BATCH,
            optimizer=AdamW(lr=FORWARD_LR, betas=(0.9, 0.99), warmup=50, schedule="cosine", floor=0.05),
            ema=Ema(decay=0.995, start=200),
        ),
        Stage(
            anyflow.on_policy(
                shift=SHIFT,
                guidance=GUIDANCE,
                teacher_guidance=GUIDANCE,
                steps=(1, 2, 4, 8, 16, 32),
                cotrain=COTRAIN,
                h=H,
            ),
            steps=ON_POLICY_STEPS,
            batch=ON_POLICY_BATCH,
            optimizer={
                "student": AdamW(lr=ON_POLICY_LR, betas=(0.0, 0.99), warmup=20, schedule="cosine", floor=0.1),
                "critic": AdamW(lr=CRITIC_LR, betas=(0.0, 0.99), warmup=20),
            },
            ema=Ema(decay=0.98, start=50),
        ),
    ),
    data=MovingDigits(count=CLIPS),
    evaluation=curve(guidance=GUIDANCE, seeds=SEEDS, samples=SAMPLES),
    name="tiny_far",
)
