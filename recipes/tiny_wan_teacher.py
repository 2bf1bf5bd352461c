"""Train the small teacher: a Wan2.1 transformer of 1.2 M parameters on moving handwritten digits.

    python recipes/tiny_wan_teacher.py --out runs/teacher

About an hour on one core, after `recipes/tiny_wan_assets.py` has made VAE and text encoder. The result,
`runs/teacher/teacher/transformer`, is what `plugins/flowmap_digits/assets/tiny_wan/transformer` holds.
"""

from __future__ import annotations

import argparse

from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, Recipe, Stage, distill
from flowmap.methods.flow_matching import flow_matching

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 128,
    "ffn_dim": 512,
    "num_layers": 4,
    "rope_max_seq_len": 64,
}
RECIPE = Recipe(
    backbone=Wan21(TINY_WAN, pretrained=False, config=CONFIG, lora=None, text_tokens=12, shift=1.0),
    stages=(
        Stage(
            flow_matching(role="teacher", shift=3.0, drop=0.1),
            steps=10_000,
            batch=32,
            optimizer=AdamW(lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01, warmup=200, schedule="cosine"),
            ema=Ema(decay=0.999, start=500),
        ),
    ),
    data=MovingDigits(count=16384, seed=1),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/teacher")
    parser.add_argument("--steps", type=int, default=None, help="a trial: at most this many")
    arguments = parser.parse_args()
    distill(RECIPE.capped(arguments.steps), out=arguments.out)
