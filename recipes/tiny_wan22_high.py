"""The high expert of a small pipeline of two: the first of two runs, some three minutes on one core.

    python recipes/tiny_wan22_assets.py --out runs/tiny_wan22
    flowmap distill tiny_wan22_high
    flowmap distill tiny_wan22_low

Its student is half of a pipeline, with which the run of the low one begins.
"""

from __future__ import annotations

from flowmap_digits.data import MovingDigits
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.methods import anyflow

BASE, BOUNDARY = "runs/tiny_wan22/base", 0.75
SHIFT, GUIDANCE = 1.0, 3.0
STEPS = (2, 4, 8, 16, 32)
FORWARD_STEPS, ON_POLICY_STEPS, BATCH = 150, 30, 16

RECIPE = Recipe(
    backbone=Wan21(BASE, expert="high", lora=None, text_tokens=12, shift=SHIFT),
    stages=(
        Stage(
            anyflow.forward(shift=SHIFT, guidance=GUIDANCE, velocity="teacher", within=(BOUNDARY, 1.0)),
            steps=FORWARD_STEPS,
            batch=BATCH,
            optimizer=AdamW(lr=1e-3, betas=(0.9, 0.99), warmup=20, schedule="cosine", floor=0.05),
            ema=Ema(decay=0.98, start=50),
        ),
        Stage(
            anyflow.on_policy(
                shift=SHIFT,
                guidance=GUIDANCE,
                teacher_guidance=GUIDANCE,
                velocity="teacher",
                steps=STEPS,
                within=(BOUNDARY, 1.0),
            ),
            steps=ON_POLICY_STEPS,
            batch=BATCH,
            optimizer={
                "student": AdamW(lr=1e-4, betas=(0.0, 0.99), warmup=10),
                "critic": AdamW(lr=3e-4, betas=(0.0, 0.99), warmup=10),
            },
            ema=Ema(decay=0.95, start=10),
        ),
    ),
    data=MovingDigits(count=2048),
    name="tiny_wan22_high",
)
