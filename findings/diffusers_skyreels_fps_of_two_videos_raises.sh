#!/usr/bin/env bash
# Expected: SkyReels-V2's pipeline for diffusion forcing takes two prompts, also where the checkpoint has an
# embedding of the frame rate (`inject_sample_info=True`).
# Seen: it raises for every batch above one. The pipeline makes one rate per sample, and the network repeats that
# list once per frame, so that its length is samples x frames instead of samples.
# Hurts: whoever samples or trains with batches on checkpoints whose configuration has that entry.
# Do: sample one prompt at a time, or call the network with `fps=[1]` where all videos share one rate.
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
scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def run(batch, inject_sample_info):
    net = SkyReelsV2Transformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                                       text_dim=16, freq_dim=32, ffn_dim=48, num_layers=1,
                                       inject_sample_info=inject_sample_info)
    pipe = SkyReelsV2DiffusionForcingPipeline(None, None, net, None, scheduler)
    pipe.set_progress_bar_config(disable=True)
    try:
        video = pipe(prompt=None, prompt_embeds=torch.randn(batch, 5, 16), height=32, width=48, num_frames=9,
                     guidance_scale=1.0, num_inference_steps=2, output_type="latent")
        return tuple(video.frames.shape)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"


seen = {(batch, info): run(batch, info) for batch in (1, 2) for info in (False, True)}
for (batch, info), result in seen.items():
    print(f"{batch} prompts, inject_sample_info={info}: {result}")
if [case for case, result in seen.items() if isinstance(result, str)] != [(2, True)]:
    sys.exit("SkyReelsV2DiffusionForcingPipeline now takes two prompts with inject_sample_info.")
PYTHON
