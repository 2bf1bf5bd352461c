#!/usr/bin/env bash
# Expected: `SkyReelsV2DiffusionForcingPipeline(latents=z)` starts from z, as the docstring says and as in other
# pipelines.
# Seen: it raises for every z. Its `prepare_latents` returns four values, or the bare tensor when latents are given.
# With a batch of four videos the bare tensor even unpacks, along the batch: the failure then comes later.
# Hurts: whoever compares two schedules or two checkpoints on the same noise, or takes up a video that was begun.
# Do: pass `generator=` with a fixed seed, or override `prepare_latents` in a subclass.
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
from diffusers import SkyReelsV2DiffusionForcingPipeline, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = SkyReelsV2Transformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                                   text_dim=16, freq_dim=32, ffn_dim=48, num_layers=1)
scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
pipe = SkyReelsV2DiffusionForcingPipeline(None, None, net, None, scheduler)
pipe.set_progress_bar_config(disable=True)


def run(batch, **latents):
    video = pipe(prompt=None, prompt_embeds=torch.randn(batch, 5, 16), height=32, width=48, num_frames=9,
                 guidance_scale=1.0, num_inference_steps=2, output_type="latent", **latents)
    return tuple(video.frames.shape)


shapes = {batch: run(batch) for batch in (1, 4)}
print("without latents:", shapes)
raised = {}
for batch, shape in shapes.items():
    try:
        run(batch, latents=torch.randn(shape))
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raised[batch] = error
        print(f"latents of {shape}: {type(error).__name__}: {error}")
if set(raised) != set(shapes):
    sys.exit("SkyReelsV2DiffusionForcingPipeline now takes latents.")
PYTHON
