"""Fine-tune a distilled student towards rewards: brighter digits that are still read as what was asked, in minutes.

    flowmap distill quickstart --out runs/quickstart
    flowmap distill reward_student --out runs/reward_student

MeanFlowNFT: the student's own samples are scored, and its flow map is regressed towards the better ones at all
(t, r), so that it gains at any number of steps. Two rewards, each normalised: the mean brightness, and the
log-probability of the digit that the prompt names, by a small classifier. The evaluation shows both, the distance to
real clips and the variety, before and after. Another student: change `STUDENT`; another method: `reward.mfa`, or
`reward.on_policy` with a teacher.
"""

from __future__ import annotations

from flowmap_consistency.reward import nft
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve, rewarded
from flowmap_digits.rewards import INK, LEGIBLE
from flowmap_digits.videos import train_prompts
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, Recipe, Stage
from flowmap.rewards import Scores

STUDENT = "runs/quickstart/student"  # an `AnyFlowPipeline` directory that an earlier run left
SHIFT = 1.0  # as the student was distilled
STEPS, PROMPTS, SAMPLES_EACH, PAIRS, LR = 24, 4, 6, 1, 3e-4
BUDGETS = (2, 4, 8)  # of the samples that are scored
CLIPS = 64  # of which the prompts alone are used
SEEDS, SAMPLES = (0, 1, 2), 32

STUDENT_SPEC = Wan21(STUDENT, lora=None, text_tokens=12, shift=SHIFT)
SCORES = Scores(STUDENT_SPEC, ((1.0, INK), (1.0, LEGIBLE)), prompts=tuple(p.text for p in train_prompts()))

RECIPE = Recipe(
    backbone=STUDENT_SPEC,
    stages=(
        Stage(
            nft(SCORES, shift=SHIFT, steps=BUDGETS, number=SAMPLES_EACH, pairs=PAIRS),
            steps=STEPS,
            batch=PROMPTS,
            optimizer=AdamW(lr=LR, betas=(0.9, 0.99), warmup=5),
            ema=Ema(decay=0.9, start=10),
        ),
    ),
    data=MovingDigits(count=CLIPS),
    evaluation=curve(
        teacher_sampler="flow_map",
        consistency=False,
        seeds=SEEDS,
        samples=SAMPLES,
        metrics=(rewarded(INK), rewarded(LEGIBLE)),
    ),
    name="reward_student",
)
