#!/usr/bin/env bash
# Expected: of Wan2.2's two experts the high one walks down to the time `boundary_ratio`, and the low one from there: a
# step that begins at the boundary, and lies wholly below it, is the low expert's.
# Seen: WanPipeline asks the high expert where t >= boundary_ratio * 1000, as its docstring says. Of a grid that has
# the boundary as a time, the step that leaves it is the high expert's, and the low one begins a step later. Of two
# steps, one for each expert, the low expert gets none. One float32 below the boundary it does get its step.
# Hurts: few-step students, whose grid is chosen to have the boundary: a large step goes to the expert that has not
# been trained below it, and a rounding in the scheduler decides whether it does.
# Do: set `boundary_ratio` of the pipeline to the middle of the boundary and the time of the step before it.
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
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
high, low = (WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                                   text_dim=16, freq_dim=32, ffn_dim=48, num_layers=1) for _ in range(2))
vae = AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                       temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
asked = []
for name, net in (("high", high), ("low", low)):
    net.register_forward_pre_hook(lambda _, args, name=name: asked.append(name))


class Given(FlowMatchEulerDiscreteScheduler):
    """A scheduler of given times: WanPipeline hands on no `sigmas`."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(device=device, sigmas=times)


def experts(boundary_ratio):
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=Given(), transformer=high,
                       transformer_2=low, boundary_ratio=boundary_ratio)
    pipe.set_progress_bar_config(disable=True)
    asked.clear()
    pipe(prompt_embeds=torch.zeros(1, 8, 16), height=32, width=32, num_frames=5, num_inference_steps=len(times),
         guidance_scale=1.0, output_type="latent")
    return [*asked]


found = {}
below = float(torch.tensor(0.875).nextafter(torch.tensor(0.0)))
for times, ratio in (([1.0, 0.875], 0.875), ([1.0, 0.875, 0.5], 0.875), ([1.0, below], 0.875), ([1.0, 0.875], 0.9375)):
    found[tuple(times), ratio] = experts(ratio)
    steps = [f"{expert} from {t:.7g}" for expert, t in zip(found[tuple(times), ratio], times)]
    print(f"boundary_ratio {ratio}: {', '.join(steps)}")
if found[(1.0, below), 0.875] != ["high", "low"] or found[(1.0, 0.875), 0.9375] != ["high", "low"]:
    sys.exit("The low expert is not asked below the boundary either: this comparison says nothing.")
if found[(1.0, 0.875), 0.875] != ["high", "high"] or found[(1.0, 0.875, 0.5), 0.875] != ["high", "high", "low"]:
    sys.exit("WanPipeline now gives the step that begins at the boundary to the low expert.")
PYTHON
