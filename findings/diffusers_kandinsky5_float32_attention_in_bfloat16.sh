#!/usr/bin/env bash
# Expected: a Kandinsky5Transformer3DModel in float32 computes in float32.
# Seen: its rotary embedding casts queries and keys of self-attention to bfloat16, whatever the dtype of the
# network, so two of the attention's three inputs keep 8 bits.
# Hurts: whoever checks gradients, derivatives or an export at float32 tolerances; small changes of the input vanish
# in the rounding, so that finite differences are wrong.
# Do: compare against the same class at bfloat16 tolerances, or give its attention a processor of your own.
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
from diffusers import Kandinsky5Transformer3DModel
from diffusers.models.transformers import transformer_kandinsky

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = Kandinsky5Transformer3DModel(in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16,
                                   ff_dim=32, model_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6))
print("network:", {parameter.dtype for parameter in net.parameters()})
for parameter in net.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
attention, seen = transformer_kandinsky.dispatch_attention_fn, []


def rounded(x):
    return torch.equal(x, x.to(torch.bfloat16).to(x.dtype))


def watched(query, key, value, **others):
    seen.append((query.dtype, rounded(query), rounded(key), rounded(value)))
    return attention(query, key, value, **others)


transformer_kandinsky.dispatch_attention_fn = watched
axes = [torch.arange(n) for n in (3, 2, 3)]
net(torch.randn(1, 3, 4, 6, 4), torch.randn(1, 5, 16), torch.ones(1), torch.randn(1, 8), axes, torch.arange(5))
for name, what in zip(("text, self", "video, self", "video, cross"), seen, strict=True):
    print(f"{name}: {what[0]}; exact in bfloat16: query {what[1]}, key {what[2]}, value {what[3]}")
if [what[1:] for what in seen] != [(True, True, False)] * 2 + [(False, False, False)]:
    sys.exit("Kandinsky5Transformer3DModel no longer rounds queries and keys to bfloat16 in float32.")
PYTHON
