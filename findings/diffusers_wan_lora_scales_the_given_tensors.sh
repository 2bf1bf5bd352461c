#!/usr/bin/env bash
# Expected: `pipe.load_lora_weights(tensors)` of a WanPipeline leaves the tensors of the dict alone, so that one dict can
# be loaded into both experts of Wan2.2, the second with `load_into_transformer_2=True`.
# Seen: of a LoRA with `alpha`, in the keys of ComfyUI and kohya, the tensors of cross-attention and feed-forward are
# multiplied by alpha / rank in place, at every load; those of self-attention are not. After the second load both experts
# have alpha / rank squared there, with alpha 2 and rank 4 a quarter of the change in place of a half: the first one, too,
# for its adapters are the caller's tensors. There is no warning.
# Hurts: distilled LoRAs put on both experts, and a dict that is loaded again after it was unloaded.
# Do: load from the file's path, or give a copy, {name: tensor.clone() for ...}.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 ftfy==6.3.1
venv/bin/python - <<'PYTHON'
import sys

import diffusers
import peft
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

print(f"diffusers {diffusers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
width, rank, alpha = 24, 4, 2.0
parts = {"self_attn.q": "attn1.to_q", "cross_attn.q": "attn2.to_q", "ffn.0": "ffn.net.0.proj"}
all_of = [*(f"{kind}.{one}" for kind in ("self_attn", "cross_attn") for one in "qkvo"), "ffn.0", "ffn.2"]
lora, product = {}, {}
for part in all_of:
    down, up, name = torch.randn(rank, width), torch.randn(width, rank), f"diffusion_model.blocks.0.{part}"
    product[part] = up @ down
    lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}


def network():
    torch.manual_seed(1)
    return WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
                                 freq_dim=16, ffn_dim=width, num_layers=1).eval()


def added(expert):
    """How much of up @ down."""
    before, found = network().state_dict(), {}
    for part, ours in parts.items():
        change = expert.get_parameter(f"blocks.0.{ours}.weight") - before[f"blocks.0.{ours}.weight"]
        found[part] = round(float((change * product[part]).sum() / product[part].square().sum()), 3)
    return found


print(f"asked is alpha / rank = {alpha / rank}")
pipe = WanPipeline(None, None, None, FlowMatchEulerDiscreteScheduler(), network())
pipe.load_lora_weights({name: tensor.clone() for name, tensor in lora.items()})
pipe.fuse_lora()
pipe.unload_lora_weights()
once = added(pipe.transformer)
print(f"one network, loaded once: {once}")
pipe = WanPipeline(None, None, None, FlowMatchEulerDiscreteScheduler(), network(), network(), boundary_ratio=0.9)
pipe.load_lora_weights(lora)
pipe.load_lora_weights(lora, load_into_transformer_2=True)
pipe.fuse_lora(components=["transformer", "transformer_2"])
pipe.unload_lora_weights()
both = [added(pipe.transformer), added(pipe.transformer_2)]
print(f"two experts, one dict: {both}")
if {*once.values()} != {0.5} or any(one != {"self_attn.q": 0.5, "cross_attn.q": 0.25, "ffn.0": 0.25} for one in both):
    sys.exit("WanPipeline.load_lora_weights no longer scales the tensors that it is given.")
PYTHON
