"""The quickstart's student, given the time it needs: about an hour and a half on two cores, minutes on a GPU.

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
FORWARD_STEPS, FORWARD_BATCH, FORWARD_LR = 6000, 32, 5e-4
ON_POLICY_STEPS, ON_POLICY_BATCH, ON_POLICY_LR, CRITIC_LR = 1000, 32, 5e-5, 1e-4
CLIPS = 16384
SEEDS, SAMPLES, REFERENCE = (0, 1, 2, 3, 4), 256, 128

RECIPE = Recipe(
    backbone=Wan21(TINY_WAN, lora=None, text_tokens=12, shift=SHIFT),
    stages=(
        Stage(
            anyflow.forward(shift=SHIFT, guidance=GUIDANCE, velocity="teacher"),
            steps=FORWARD_STEPS,
            batch=FORWARD_BATCH,
            optimizer=AdamW(lr=FORWARD_LR, betas=(0.9, 0.99), warmup=100, schedule="cosine", floor=0.05),
            ema=Ema(decay=0.998, start=500),
        ),
        Stage(
            anyflow.on_policy(
                shift=SHIFT,
                guidance=GUIDANCE,
                teacher_guidance=GUIDANCE,
                velocity="teacher",
                steps=(1, 2, 4, 8, 16, 32),
            ),
            steps=ON_POLICY_STEPS,
            batch=ON_POLICY_BATCH,
            optimizer={
                "student": AdamW(lr=ON_POLICY_LR, betas=(0.0, 0.99), warmup=20),
                "critic": AdamW(lr=CRITIC_LR, betas=(0.0, 0.99), warmup=20),
            },
            ema=Ema(decay=0.99, start=100),
        ),
    ),
    data=MovingDigits(count=CLIPS),
    evaluation=curve(guidance=GUIDANCE, seeds=SEEDS, samples=SAMPLES, reference=REFERENCE),
    name="tiny_wan",
)
