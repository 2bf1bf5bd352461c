"""Fine-tune a distilled student on clips of another style: no teacher, no second distillation, some five minutes.

    flowmap distill quickstart --out runs/quickstart
    flowmap distill finetune_student --out runs/finetune_student

The student of the quickstart knows thin strokes and quick digits; the new clips show bold strokes at half the speed,
from the same prompts. The evaluation compares with real clips of that style, before and after, on prompts that neither
training had. `methods.finetune` is flow-map matching on the clips alone; `benchmarks/results/finetune_student` has what
it gives, beside plain flow matching. Another student: change `STUDENT`.
"""

from __future__ import annotations

from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve
from flowmap_digits.videos import HEAVY
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.methods.finetune import finetune

STUDENT = "runs/quickstart/student"  # an `AnyFlowPipeline` directory that an earlier run left
SHIFT, GUIDANCE = 1.0, 3.0  # as the student was distilled
STEPS, BATCH, LR = 500, 32, 7e-4
CLIPS = 2048
SEEDS, SAMPLES = (0, 1, 2), 64

RECIPE = Recipe(
    backbone=Wan21(STUDENT, lora=None, text_tokens=12, shift=SHIFT),
    stages=(
        Stage(
            finetune(shift=SHIFT, guidance=GUIDANCE),
            steps=STEPS,
            batch=BATCH,
            optimizer=AdamW(lr=LR, betas=(0.9, 0.99), warmup=20, schedule="cosine", floor=0.05),
            ema=Ema(decay=0.99, start=50),
        ),
    ),
    data=MovingDigits(count=CLIPS, style=HEAVY),
    evaluation=curve(style=HEAVY, teacher_sampler="flow_map", consistency=False, seeds=SEEDS, samples=SAMPLES),
    name="finetune_student",
)
