#!/usr/bin/env bash
# Expected: `F.interpolate(..., antialias=True)` of uint8 pixels is that of the same pixels in float32, rounded: they
# differ by one level at most.
# Seen: on a CPU it works along the width, rounds and clamps to 0 ... 255, then along the height. Bicubic overshoots
# at a saturated edge; what the second pass would have taken back is cut away. A checkerboard differs by 11 levels.
# In the mean it is 0.2 of one, and pixels that come near neither 0 nor 255 differ by 1.
# Hurts: tests that compare a data set's resizing with a model's own in float32, or a tolerance taken from photographs.
# Do: convert to float32 before and round after, or allow for it; bilinear does not overshoot and differs by 1.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import sys

import torch
from torch.nn.functional import interpolate

print(f"torch {torch.__version__}")
y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
board = 255 * ((y // 16 + x // 16) % 2)
images = {"checkerboard": board, "a grey one": 64 + board // 2}


def resized(pixels, size, mode):
    return interpolate(pixels.float(), size, mode=mode, antialias=True).round().clamp(0, 255)


off = {}
for name, image in images.items():
    pixels = image.to(torch.uint8)[None, None]
    for mode in ("bilinear", "bicubic"):
        seen = interpolate(pixels, (100, 140), mode=mode, antialias=True).float()
        passes = resized(resized(pixels, (256, 140), mode), (100, 140), mode)
        off[name, mode] = [float((seen - want).abs().max()) for want in (resized(pixels, (100, 140), mode), passes)]
        mean = float((seen - resized(pixels, (100, 140), mode)).abs().mean())
        print(f"{name}, {mode}: off by {off[name, mode][0]:.0f} levels from float32 ({mean:.2f} in the mean), by"
              f" {off[name, mode][1]:.0f} from two passes that are each rounded and clamped")
board = off.pop(("checkerboard", "bicubic"))
if board[0] < 5:
    sys.exit("torch no longer clamps uint8 pixels between the two passes.")
if any(levels > 1 for levels, _ in off.values()) or board[1] > 1:
    sys.exit("Another case differs by more than a level, or two passes do not explain it.")
PYTHON
