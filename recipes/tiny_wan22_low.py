"""The low expert of a small pipeline of two, on top of the high one's student: some four minutes on one core.

    flowmap distill tiny_wan22_high     # first
    flowmap distill tiny_wan22_low
    flowmap sample runs/tiny_wan22_low/student --prompt "a seven moving up quickly" --steps 2 4 8

What comes out is the pair, a `WanPipeline` of both.
"""

from __future__ import annotations

from attrs import evolve
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve
from flowmap_wan21 import Experts, Wan21

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.methods import anyflow

BASE, HIGH, BOUNDARY = "runs/tiny_wan22/base", "runs/tiny_wan22_high/student", 0.75
SHIFT, GUIDANCE = 1.0, 3.0
STEPS = (2, 4, 8, 16, 32)
FORWARD_STEPS, ON_POLICY_STEPS, BATCH = 120, 12, 16
LOW = Wan21(BASE, expert="low", lora=None, text_tokens=12, shift=SHIFT)

RECIPE = Recipe(
    backbone=Experts(evolve(LOW, path=HIGH, expert="high"), LOW),
    teacher=Experts(evolve(LOW, expert="high"), LOW),  # both, for the evaluation
    critic=LOW,
    stages=(
        Stage(
            anyflow.forward(shift=SHIFT, guidance=GUIDANCE, velocity="teacher", within=(0.0, BOUNDARY)),
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
                within=(0.0, BOUNDARY),
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
    evaluation=curve(guidance=GUIDANCE, steps=STEPS, seeds=(0, 1), samples=16, reference=32, consistency=False),
    name="tiny_wan22_low",
)
