#!/usr/bin/env bash
# Expected: a HunyuanVideo-1.5 transformer with `use_meanflow=True` is told by its pipelines the time that a step ends
# at; and one that is not told r is a model at r = t, the instantaneous velocity.
# Seen: `HunyuanVideo15ImageToVideoPipeline` hands over `timestep_r`; `HunyuanVideo15Pipeline`, of text, never does, for
# the same network. Without it the term of r is left out of the sum of the time embeddings, which is no r at all: the
# output is that of r = t no more than that of the step's end.
# Hurts: whoever makes videos from text by a network of two times: each call is one that it was not trained for.
# Do: hand `timestep_r` over by a forward pre-hook (the next of `scheduler.timesteps`, 0 at the last).
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
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel
from PIL import Image
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = HunyuanVideo15Transformer3DModel(in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16,
                                       num_layers=1, num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=8,
                                       image_embed_dim=8, rope_axes_dim=(4, 6, 6), use_meanflow=True, target_size=64)
vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
scheduler, guider = FlowMatchEulerDiscreteScheduler(shift=5.0), ClassifierFreeGuidance(guidance_scale=1.0)
eye = SiglipVisionModel(SiglipVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                           num_attention_heads=2, image_size=32, patch_size=16))
of_text = HunyuanVideo15Pipeline(None, None, net, vae, scheduler, None, None, guider)
of_image = HunyuanVideo15ImageToVideoPipeline(None, None, net, vae, scheduler, None, None, guider, eye,
                                              SiglipImageProcessor(size={"height": 32, "width": 32}))
text = {"prompt_embeds": torch.randn(1, 5, 16), "prompt_embeds_2": torch.randn(1, 4, 8),
        "prompt_embeds_mask": torch.ones(1, 5), "prompt_embeds_mask_2": torch.ones(1, 4)}
calls = []
net.register_forward_pre_hook(lambda _, args, given: calls.append(given), with_kwargs=True)
told = {}
for pipe, given in ((of_image, {"image": Image.new("RGB", (64, 64))}), (of_text, {"height": 64, "width": 64})):
    name = type(pipe).__name__
    pipe.set_progress_bar_config(disable=True)
    calls.clear()
    pipe(**given, **text, num_frames=5, num_inference_steps=4, output_type="latent")
    told[name] = [None if call.get("timestep_r") is None else round(float(call["timestep_r"])) for call in calls]
    print(f"{name}: t {[round(float(call['timestep'])) for call in calls]}, r {told[name]}")
if None in told["HunyuanVideo15ImageToVideoPipeline"]:
    sys.exit("HunyuanVideo15ImageToVideoPipeline tells no r either: this comparison says nothing.")
if any(r is not None for r in told["HunyuanVideo15Pipeline"]):
    sys.exit("HunyuanVideo15Pipeline now tells the network r.")
call = calls[1]
with torch.no_grad():
    without = net(**call)[0]
    at = {f"r = {r:.0f}": net(**call, timestep_r=torch.tensor([r]))[0]
          for r in (float(call["timestep"]), float(calls[2]["timestep"]))}
off = {name: float((without - value).norm() / value.norm()) for name, value in at.items()}
print(f"the network at t = {float(call['timestep']):.0f} without r is off by",
      ", ".join(f"{value:.1%} from {name}" for name, value in off.items()))
if min(off.values()) < 0.01:
    sys.exit("The network now takes an r that it was not told as r = t, or as the next.")
PYTHON
