#!/usr/bin/env bash
# Expected: `manual_seed` takes 64 bits, `initial_seed` gives all of them back, and so two seeds give two streams.
# Seen: the generator of the CPU starts from the lower 32 bits alone. s and s + 2**32 draw the same numbers, with
# `torch.manual_seed` and with a generator of one's own. (Not run here: the generator of CUDA, which keeps 64 bits.)
# Hurts: whoever packs two numbers into one seed, such as `(run << 32) + sample`: every run draws the same noise.
# Do: hash what identifies the stream into 32 bits, or put the part that varies most into the lower 32 bits.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import sys

import torch

print(f"torch {torch.__version__}")
seeds = [3 + (run << 32) for run in range(4)]
drawn = []
for seed in seeds:
    own = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    drawn.append(torch.cat([torch.randn(3, generator=own), torch.randn(3)]))
    print(f"seed {seed:>11}, initial_seed {own.initial_seed():>11}: {drawn[-1].tolist()}")
if not all(torch.equal(one, drawn[0]) for one in drawn):
    sys.exit("torch's CPU generator now uses more than 32 bits of the seed.")
PYTHON
