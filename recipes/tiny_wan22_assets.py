"""Make a small pipeline of two experts, in the layout of Wan2.2 A14B, out of the moving-digits pipeline.

    python recipes/tiny_wan22_assets.py --out runs/tiny_wan22

Each expert is the small teacher, trained on at its own side of t = 0.75 alone, so that it forgets the other. Some three
minutes on one core. `DIR/base` becomes a diffusers ``WanPipeline`` with `transformer`, `transformer_2` and
`boundary_ratio`; `recipes/tiny_wan22_high.py` and then `recipes/tiny_wan22_low.py` distil it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, Recipe, Stage, distill
from flowmap.methods import anyflow

BOUNDARY, SHIFT = 0.75, 1.0
STEPS, BATCH, LR = 150, 16, 1.5e-3


def expert(within: tuple[float, float], steps: int) -> Recipe:
    """The small teacher at these times alone."""
    stage = Stage(
        anyflow.teacher(shift=SHIFT, within=within),
        steps=steps,
        batch=BATCH,
        optimizer=AdamW(lr=LR, betas=(0.9, 0.99), warmup=20, schedule="cosine", floor=0.02),
        ema=Ema(decay=0.97, start=30),
    )
    backbone = Wan21(TINY_WAN, lora=None, text_tokens=12, shift=SHIFT)
    return Recipe(backbone, (stage,), data=MovingDigits(count=2048, seed=1))


def main() -> None:
    from diffusers import WanPipeline, WanTransformer3DModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    made = {}
    for name, within in (("transformer", (BOUNDARY, 1.0)), ("transformer_2", (0.0, BOUNDARY))):
        distill(expert(within, arguments.steps), out=arguments.out / name)
        made[name] = WanTransformer3DModel.from_pretrained(arguments.out / name / "teacher", subfolder="transformer")
    pipe = WanPipeline.from_pretrained(TINY_WAN)
    parts = {name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    WanPipeline(**parts, **made, boundary_ratio=BOUNDARY).save_pretrained(arguments.out / "base")


if __name__ == "__main__":
    main()
