#!/usr/bin/env bash
# Expected: `WanVideoToVideoPipeline.from_pretrained` of a Wan2.2 A14B directory, whose `model_index.json` names
# `transformer_2` and `boundary_ratio`, uses both experts or raises, as a part of the model cannot be left out.
# Seen: the class takes no second network. Its entry is dropped with a line in the log, and the first expert, which was
# trained for times above 0.875 alone, is asked at every time down to the last.
# Hurts: whoever edits videos with Wan2.2 A14B and blames the model for what comes out.
# Do: give it a pipeline of one network, such as Wan2.1-T2V; check `pipe.components` against the index of the directory.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 ftfy==6.3.1
venv/bin/python - <<'PYTHON'
import sys

import diffusers
import torch
from diffusers import (AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel,
                       WanVideoToVideoPipeline)

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
high, low = (WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                                   text_dim=16, freq_dim=32, ffn_dim=48, num_layers=1) for _ in range(2))
vae = AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                       temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
pair = WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=high,
                   transformer_2=low, boundary_ratio=0.875)
pair.save_pretrained("a14b")
try:
    pipe = WanVideoToVideoPipeline.from_pretrained("a14b", tokenizer=None, text_encoder=None)
except Exception as error:
    sys.exit(f"diffusers now refuses it: {type(error).__name__}: {error}")
pipe.set_progress_bar_config(disable=True)
asked = []
pipe.transformer.register_forward_pre_hook(
    lambda net, args, given: asked.append(float(given["timestep"].flatten()[0])), with_kwargs=True
)
text = torch.randn(1, 8, 16)
pipe(latents=torch.randn(1, 4, 2, 4, 4), prompt_embeds=text, negative_prompt_embeds=text, height=32, width=32,
     num_inference_steps=4, strength=1.0, guidance_scale=1.0, output_type="latent")
print("parts of the directory:", *sorted(name for name in pair.components))
print("parts that were loaded:", *sorted(name for name in pipe.components))
print("the high expert, for times above 875, was asked at", *asked)
if "transformer_2" in pipe.components or min(asked) >= 875:
    sys.exit("diffusers now uses both experts.")
PYTHON
