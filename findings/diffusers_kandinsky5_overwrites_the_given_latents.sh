#!/usr/bin/env bash
# Expected: `Kandinsky5T2VPipeline(latents=z)` reads z and leaves it, as other pipelines do.
# Seen: every step is written into z itself, where z has the device and dtype of the loop. After the call z is the
# video, and the output is a view of it. A second call with "the same noise" starts from the first call's video.
# Hurts: whoever keeps one noise for several prompts, checkpoints or schedules, or makes (noise, video) pairs.
# Do: pass `latents=z.clone()`.
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
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = Kandinsky5Transformer3DModel(in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16,
                                   ff_dim=32, model_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6))
pipe = Kandinsky5T2VPipeline(net, None, None, None, None, None, FlowMatchEulerDiscreteScheduler())
pipe.set_progress_bar_config(disable=True)
text = {"prompt_embeds_qwen": torch.randn(1, 5, 16), "prompt_embeds_clip": torch.randn(1, 8),
        "prompt_cu_seqlens": torch.tensor([0, 5])}


def run(z):
    return pipe(**text, height=32, width=48, num_frames=9, guidance_scale=1.0, num_inference_steps=2,
                output_type="latent", latents=z).frames


noise = torch.randn(1, 3, 4, 6, 4)
kept = noise.clone()
video = run(noise)
changed, shared = not torch.equal(noise, kept), video.data_ptr() == noise.data_ptr()
first, again, right = video.clone(), run(noise).clone(), run(kept.clone())
print(f"noise changed: {changed}; the output shares its memory: {shared}")
print(f"a second call with the same tensor gives the same video: {torch.equal(first, again)}")
print(f"a call with a copy of the noise does: {torch.equal(first, right)}")
if not (changed and shared and torch.equal(first, right)) or torch.equal(first, again):
    sys.exit("Kandinsky5T2VPipeline no longer writes into the latents that it is given.")
PYTHON
