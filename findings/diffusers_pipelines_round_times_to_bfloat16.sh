#!/usr/bin/env bash
# Expected: in bfloat16 a pipeline hands the network the times of its scheduler, in float32, as the time embedding
# is computed in float32: 937.5, 833.33 and 625 at four steps with shift 5.
# Seen: HunyuanVideo15Pipeline casts them to the dtype of the latents first, where neighbours are 4 apart: 936, 832
# and 624. The step itself keeps the exact times. At 100 steps many neighbours become one time. MochiPipeline has
# the same cast.
# Hurts: whoever trains on exact times: the network is sampled at others. Whoever counts on distinct times.
# Do: train through the same rounding, or write the loop with `timestep=t.expand(batch)` in float32.
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
from diffusers import AutoencoderKLHunyuanVideo15, ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler
from diffusers import HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = HunyuanVideo15Transformer3DModel(in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16,
                                       num_layers=1, num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=8,
                                       image_embed_dim=8, rope_axes_dim=(4, 6, 6)).to(torch.bfloat16)
vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
pipe = HunyuanVideo15Pipeline(None, None, net, vae, FlowMatchEulerDiscreteScheduler(shift=5.0), None, None,
                              ClassifierFreeGuidance(guidance_scale=1.0))
pipe.set_progress_bar_config(disable=True)
handed = []
net.register_forward_pre_hook(lambda _, args, given: handed.append(float(given["timestep"])), with_kwargs=True)
text = {"prompt_embeds": torch.randn(1, 5, 16), "prompt_embeds_2": torch.randn(1, 4, 8)}
masks = {"prompt_embeds_mask": torch.ones(1, 5), "prompt_embeds_mask_2": torch.ones(1, 4)}
for steps in (4, 100):
    handed.clear()
    pipe(**{name: value.to(torch.bfloat16) for name, value in (text | masks).items()}, height=64, width=96,
         num_frames=5, num_inference_steps=steps, output_type="latent")
    exact = pipe.scheduler.timesteps.tolist()
    print(f"{steps} steps: the scheduler has {len(set(exact))} times, {[round(t, 2) for t in exact[:4]]} ...")
    print(f"    the network is handed {len(set(handed))}, {handed[:4]} ...")
    if handed == exact or handed != pipe.scheduler.timesteps.to(torch.bfloat16).tolist():
        sys.exit("HunyuanVideo15Pipeline no longer rounds the times to bfloat16.")
PYTHON
