#!/usr/bin/env bash
# Expected: AnyFlowFARPipeline(video_latents=...) continues after the frames that it is given, of any number, or refuses
# a number that does not end with a chunk.
# Seen: a chunk of which the context has only a part is not generated. Its other frames stay zero in latents, the mean of
# the data, and the chunks after it remember them. With the default chunks 1, 3, 3, ... a context of 9 video frames, 3
# latent ones, leaves the fourth empty. There is no warning.
# Hurts: continuing a clip. The documentation asks for 4n + 1 frames; only 1, 13, 25, ... end with a chunk.
# Do: cut the context to whole chunks, or give a `chunk_partition` in which a chunk ends where the context does.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 ftfy==6.3.1
venv/bin/python - <<'PYTHON'
import sys
import warnings

import diffusers
import torch
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AutoencoderKLWan,
    FlowMapEulerDiscreteScheduler,
)

warnings.filterwarnings("ignore")  # flex attention that is not compiled
print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = AnyFlowFARTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                                   text_dim=8, freq_dim=16, ffn_dim=24, num_layers=2, chunk_partition=(1, 3, 3))
vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
                       latents_std=[1.0] * 4)
pipe = AnyFlowFARPipeline(None, None, net.eval(), vae, FlowMapEulerDiscreteScheduler())
pipe.set_progress_bar_config(disable=True)
empty = {}
for context in (1, 2, 3, 4):
    made = pipe(prompt_embeds=torch.randn(1, 5, 8), height=32, width=32, num_frames=25, num_inference_steps=1,
                video_latents=torch.randn(1, context, 4, 4, 4), output_type="latent").frames
    empty[context] = [k for k in range(7) if not made[0, :, k].any()]
    print(f"chunks 1, 3, 3; context of {context} latent frames, {1 + 4 * (context - 1)} of video; "
          f"frames that are all zero: {empty[context] or 'none'}")
if empty != {1: [], 2: [2, 3], 3: [3], 4: []}:
    sys.exit("AnyFlowFARPipeline no longer leaves the rest of a chunk empty that the context has a part of.")
PYTHON
