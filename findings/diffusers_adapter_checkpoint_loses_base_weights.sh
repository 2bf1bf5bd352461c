#!/usr/bin/env bash
# Expected: after `model.add_adapter(LoraConfig(...))`, `save_pretrained` writes a checkpoint that `from_pretrained`
# of the same class reads, since both are methods of one model.
# Seen: the weights under the adapter are written as `to_q.base_layer.weight`, which the class does not know. They
# are dropped with a warning, and so is the adapter: not even the base model can be read back.
# Hurts: whoever saves the transformer in the middle of a LoRA training, and keeps nothing else.
# Do: save the adapter with `save_lora_adapter`; or `fuse_lora()` and `unload_lora()`, then `save_pretrained`.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
venv/bin/python - <<'PYTHON'
import sys
import tempfile

import diffusers
import peft
import torch
from diffusers import WanTransformer3DModel

print(f"diffusers {diffusers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                            text_dim=16, freq_dim=32, ffn_dim=48, num_layers=1)
wanted = sorted(name for name in net.state_dict() if ".to_q." in name)


def saved_and_read():
    with tempfile.TemporaryDirectory() as checkpoint:
        net.save_pretrained(checkpoint)
        _, info = WanTransformer3DModel.from_pretrained(checkpoint, output_loading_info=True)
    return sorted(info["missing_keys"]), sorted(info["unexpected_keys"])


net.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"]))
missing, unread = saved_and_read()
print("weights of the class that the checkpoint lacks:", *missing, sep="\n    ")
print("weights of the checkpoint that were not read:", *unread, sep="\n    ")
net.fuse_lora()
net.unload_lora()
fused = saved_and_read()
print("after fuse_lora and unload_lora:", fused)
if missing != wanted or not {name.replace("to_q", "to_q.base_layer") for name in wanted} < set(unread) or any(fused):
    sys.exit("diffusers now reads the base weights of a checkpoint that was saved with an adapter.")
PYTHON
