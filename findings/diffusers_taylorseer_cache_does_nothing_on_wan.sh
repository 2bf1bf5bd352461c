#!/usr/bin/env bash
# Expected: `transformer.enable_cache(TaylorSeerCacheConfig(...))` skips blocks between full steps, or says that it cannot.
# Seen: on WanTransformer3DModel it is accepted, and every call stays bit for bit what it is without it: nothing is
# cached, and no warning says so.
# Hurts: whoever measures quality or time "with TaylorSeer": both are those of no cache.
# Do: compare a few calls with and without, before a cache is trusted.
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
from diffusers import TaylorSeerCacheConfig, WanTransformer3DModel

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
                            out_channels=4, text_dim=16, freq_dim=32, ffn_dim=48, num_layers=2).eval()
z, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 6, 16)
counted = []
for block in net.blocks:
    block.attn1.register_forward_hook(lambda *_: counted.append(1))


def walk():
    counted.clear()
    made = [net(z * t, torch.tensor([1000 * t]), text).sample for t in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)]
    return made, len(counted)


with torch.no_grad():
    plain, calls = walk()
    net.enable_cache(TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1))
    with net.cache_context("walk"):
        cached, more = walk()
off = max(float((a - b).abs().max()) for a, b in zip(plain, cached, strict=True))
print(f"6 calls: {calls} attentions without, {more} with TaylorSeer; the outputs differ by {off:.1e}")
if off or calls != more:
    sys.exit("TaylorSeer now does something on WanTransformer3DModel.")
PYTHON
