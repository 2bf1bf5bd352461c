#!/usr/bin/env bash
# Expected: AnyFlowPipeline at guidance_scale=1, its default, makes one video of one prompt and leaves out negative
# embeddings, as WanPipeline does.
# Seen: given `negative_prompt_embeds`, too, it makes two videos. `frames[0]` is that of the negative prompt, and
# `frames[1]` that of the prompt. There is no warning.
# Hurts: who passes both embeddings always, and switches guidance by its scale: with a distilled student the first video
# is of "blurry, low quality".
# Do: leave `negative_prompt_embeds` out unless guidance_scale is above 1.
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
from diffusers import (
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKLWan,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
size = dict(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
            ffn_dim=24, num_layers=2)
vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
                       latents_std=[1.0] * 4)
noise, prompt, negative = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 5, 8), torch.randn(1, 5, 8)


def made(pipe, **embeddings):
    pipe.set_progress_bar_config(disable=True)
    return pipe(height=32, width=32, num_frames=9, num_inference_steps=2, guidance_scale=1.0, latents=noise.clone(),
                output_type="latent", **embeddings).frames


def far(a, b):
    return float((a - b).abs().max())


wan = WanPipeline(None, None, vae, FlowMatchEulerDiscreteScheduler(), WanTransformer3DModel(**size).eval())
both = made(wan, prompt_embeds=prompt, negative_prompt_embeds=negative)
print(f"WanPipeline makes {len(both)}, {far(both[0], made(wan, prompt_embeds=prompt)[0]):.0e} from that of the prompt")
pipe = AnyFlowPipeline(None, None, AnyFlowTransformer3DModel(**size).eval(), vae, FlowMapEulerDiscreteScheduler())
both = made(pipe, prompt_embeds=prompt, negative_prompt_embeds=negative)
one, other = (made(pipe, prompt_embeds=embeddings)[0] for embeddings in (prompt, negative))
print(f"AnyFlowPipeline makes {len(both)}; the first is {far(both[0], one):.2f} from that of the prompt, "
      f"{far(both[0], other):.0e} from that of the negative prompt")
if len(both) != 2 or far(both[0], other) > 1e-5 or far(both[0], one) < 1e-2:
    sys.exit("AnyFlowPipeline no longer makes a video of the negative prompt at guidance_scale=1.")
PYTHON
