#!/usr/bin/env bash
# Expected: HunyuanVideoPipeline in bfloat16 hands guidance_scale x 1000 to the network: 6000 for the default of 6.
# Seen: 6016. The number is made in bfloat16, multiplied and rounded again, before the network embeds it in float32;
# the step between neighbours is 32 there, so that 5.99 and 6.02 are the same guidance.
# Hurts: whoever trains on the exact guidance: the network is then sampled at a value that it was not trained on.
# Whoever compares two scales that are close compares nothing.
# Do: train through the same rounding, or call the network with a float32 `guidance`.
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
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = HunyuanVideoTransformer3DModel(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10,
                                     num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=1,
                                     guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8,
                                     rope_axes_dim=(2, 4, 4))
pipe = HunyuanVideoPipeline(None, None, net, None, FlowMatchEulerDiscreteScheduler(shift=7.0), None, None)
pipe.set_progress_bar_config(disable=True)
handed = []
net.register_forward_pre_hook(lambda _, args, given: handed.append(float(given["guidance"])), with_kwargs=True)
for dtype in (torch.float32, torch.bfloat16):
    net.to(dtype)
    for guidance_scale in (5.99, 6.0, 6.02):
        text = {"prompt_embeds": torch.randn(1, 5, 16), "pooled_prompt_embeds": torch.randn(1, 8),
                "prompt_attention_mask": torch.ones(1, 5)}
        pipe(**{name: value.to(dtype) for name, value in text.items()}, height=32, width=48, num_frames=5,
             num_inference_steps=1, guidance_scale=guidance_scale, output_type="latent")
        print(f"{dtype}, guidance_scale={guidance_scale}: the network is handed {handed[-1]:.1f}")
if handed[1] != 6000 or handed[3:] != [6016] * 3:
    sys.exit("HunyuanVideoPipeline no longer makes the guidance in bfloat16.")
PYTHON
