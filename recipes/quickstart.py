"""Distil a small trained teacher into an any-step student in a few minutes on two cores.

    flowmap distill quickstart --out runs/quickstart

The teacher has Wan2.1's architecture and 1.2 M parameters and makes clips of moving handwritten digits from prompts
such as "a seven moving up quickly, bouncing"; `recipes/tiny_wan_teacher.py` trained it. AnyFlow's two stages, short:
`recipes/tiny_wan.py` takes the time that they need.
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
FORWARD_STEPS, FORWARD_BATCH, FORWARD_LR = 260, 32, 1.5e-3
ON_POLICY_STEPS, ON_POLICY_BATCH, ON_POLICY_LR, CRITIC_LR = 80, 16, 2e-4, 5e-4
CLIPS = 2048
SEEDS, SAMPLES = (0, 1, 2), 32

RECIPE = Recipe(
    backbone=Wan21(TINY_WAN, lora=None, text_tokens=12, shift=SHIFT),
    stages=(
        Stage(
            anyflow.forward(shift=SHIFT, guidance=GUIDANCE, velocity="teacher", h=H),
            steps=FORWARD_STEPS,
            batch=FORWARD_BATCH,
            optimizer=AdamW(lr=FORWARD_LR, betas=(0.9, 0.99), warmup=20, schedule="cosine", floor=0.05),
            ema=Ema(decay=0.98, start=50),
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
                "student": AdamW(lr=ON_POLICY_LR, betas=(0.0, 0.99), warmup=10),
                "critic": AdamW(lr=CRITIC_LR, betas=(0.0, 0.99), warmup=10),
            },
            ema=Ema(decay=0.95, start=10),
        ),
    ),
    data=MovingDigits(count=CLIPS),
    evaluation=curve(guidance=GUIDANCE, seeds=SEEDS, samples=SAMPLES),
    name="quickstart",
)
