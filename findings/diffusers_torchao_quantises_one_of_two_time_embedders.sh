#!/usr/bin/env bash
# Expected: AnyFlow's two time embedders, for t and for r, have one architecture and are mixed in one sum; reading
# the model in bfloat16, or quantised with TorchAoConfig, treats them alike.
# Seen: `_keep_in_fp32_modules` names "time_embedder" and not "delta_embedder". In bfloat16 the first is kept in
# float32 and the second is rounded; with int8 weights the first stays float32 and the second is quantised.
# Hurts: whoever deploys a flow map u(z, t, r) in low precision: r is told less exactly than t, at an error of its
# own.
# Do: `TorchAoConfig(..., modules_to_not_convert=["delta_embedder"])` keeps it from int8. For float32, call
# `delta_embedder.float()` and load its saved weights again.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 torchao==0.18.0
venv/bin/python - <<'PYTHON'
import sys
import tempfile

import diffusers
import torch
import torchao
from diffusers import AnyFlowTransformer3DModel, TorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig

print(f"diffusers {diffusers.__version__}, torchao {torchao.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
net = AnyFlowTransformer3DModel(num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=4,
                                text_dim=32, freq_dim=32, ffn_dim=64, num_layers=1)
seen, int8 = [], Int8WeightOnlyConfig()
with tempfile.TemporaryDirectory() as checkpoint:
    net.save_pretrained(checkpoint)
    for name, config in (
        ("bfloat16", None),
        ("int8 weights", TorchAoConfig(int8)),
        ("int8 weights, delta_embedder spared", TorchAoConfig(int8, modules_to_not_convert=["delta_embedder"])),
    ):
        read = AnyFlowTransformer3DModel.from_pretrained(checkpoint, torch_dtype=torch.bfloat16,
                                                         quantization_config=config)
        both = read.condition_embedder
        weights = [embedder.linear_1.weight for embedder in (both.time_embedder, both.delta_embedder)]
        seen.append([f"{type(w).__name__} {w.dtype}" for w in weights])
        print(f"{name}: time_embedder {seen[-1][0]}, delta_embedder {seen[-1][1]}")
full, half = "Parameter torch.float32", "Parameter torch.bfloat16"
if seen != [[full, half], [full, "Int8Tensor torch.bfloat16"], [full, half]]:
    sys.exit("diffusers or torchao now treats AnyFlow's two time embedders alike.")
PYTHON
