"""The quickstart's student, given the time it needs: about half an hour on one core.

    flowmap distill tiny_wan --out runs/tiny_wan

The same teacher, AnyFlow's two stages, and an evaluation with more samples, whose curve stands in
`benchmarks/results/tiny_wan`:

    flowmap curve runs/tiny_wan --out benchmarks/results/tiny_wan
"""

from __future__ import annotations

from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.methods import anyflow

SHIFT, GUIDANCE = 1.0, 3.0
H = 5e-3  # in float32 better at many steps than the default, and worse at one: docs/methods.md
FORWARD_STEPS, FORWARD_BATCH, FORWARD_LR = 1800, 32, 1e-3
ON_POLICY_STEPS, ON_POLICY_BATCH, ON_POLICY_LR, CRITIC_LR = 300, 32, 1e-4, 3e-4
CLIPS = 8192
SEEDS, SAMPLES = (0, 1, 2, 3, 4), 64

RECIPE = Recipe(
    backbone=Wan21(TINY_WAN, lora=None, text_tokens=12, shift=SHIFT),
    stages=(
        Stage(
            anyflow.forward(shift=SHIFT, guidance=GUIDANCE, velocity="teacher", h=H),
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
                velocity="teacher",
                h=H,
                steps=(1, 2, 4, 8, 16, 32),
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
    name="tiny_wan",
)
