#!/usr/bin/env bash
# Expected: `HeliosPipeline(latents=z)` starts from z, as its docstring says.
# Seen: the argument is accepted and never read: each chunk draws its own noise. No warning, no error.
# Hurts: whoever compares checkpoints or schedules on one noise: the comparison measures the draw.
# Do: pass `generator=` with a fixed seed.
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
from diffusers import AutoencoderKLWan, HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = HeliosTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
                               freq_dim=32, ffn_dim=48, num_layers=1, rope_dim=(4, 4, 4))
vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
                       latents_std=[1.0] * 4)
pipe = HeliosPipeline(None, None, vae, HeliosScheduler(stages=1), net)
pipe.set_progress_bar_config(disable=True)
first = []
net.register_forward_pre_hook(lambda _, args, given: first.append(given["hidden_states"].clone()), with_kwargs=True)
text = torch.randn(1, 5, 16)
for latents in (None, torch.zeros(1, 4, 9, 8, 8), torch.full((1, 4, 9, 8, 8), 100.0)):
    pipe(prompt_embeds=text, height=64, width=64, num_frames=33, num_inference_steps=1, guidance_scale=1.0,
         generator=torch.Generator().manual_seed(0), latents=latents, output_type="latent")
    given = "None" if latents is None else f"all {latents.mean():.0f}"
    print(f"latents {given}: the network is handed mean {first[-1].mean():.3f}, std {first[-1].std():.3f}")
if not all(torch.equal(one, first[0]) for one in first):
    sys.exit("HeliosPipeline now uses the latents that it is given.")
PYTHON
