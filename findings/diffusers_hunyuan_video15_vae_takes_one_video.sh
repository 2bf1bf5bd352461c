#!/usr/bin/env bash
# Expected: `AutoencoderKLHunyuanVideo15` encodes and decodes a batch of videos, as every other VAE of diffusers does.
# Seen: a batch of 2 raises in its attention: the causal mask is made as [B, N, N] where [B, 1, N, N] would broadcast.
# One video works, since [1, N, N] broadcasts by accident.
# Hurts: whoever encodes a data set in batches, or asks its pipeline for two videos at once.
# Do: one video a call (`enable_slicing` splits a batch).
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import sys

import diffusers
import torch
from diffusers import AutoencoderKLHunyuanVideo15

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1).eval()
raised = {}
for batch in (1, 2):
    for name, call in {
        "encode": lambda: vae.encode(torch.randn(batch, 3, 5, 64, 64)).latent_dist.mode(),
        "decode": lambda: vae.decode(torch.randn(batch, 4, 2, 4, 4)).sample,
    }.items():
        try:
            with torch.no_grad():
                said = f"gives {list(call().shape)}"
        except RuntimeError as error:
            raised[name, batch] = said = f"raises: {error}"
        print(f"{name}, {batch} videos: {said}")
if set(raised) != {("encode", 2), ("decode", 2)}:
    sys.exit("AutoencoderKLHunyuanVideo15 now takes another number of videos.")
PYTHON
