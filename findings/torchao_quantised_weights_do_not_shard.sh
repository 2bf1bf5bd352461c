#!/usr/bin/env bash
# Expected: a network whose frozen linear layers torchao has quantised, for adapters to be trained on it, takes FSDP2's
# `fully_shard`, as networks in torchao's float8 training do.
# Seen: torchao 0.18.0's int8 and float8 weight-only tensors, with torch 2.13.0, raise NotImplementedError there: the one
# has no `aten.split`, the other no `aten.new_zeros` as FSDP2 asks for it, to cut a parameter into ranks' pieces.
# Hurts: adapters on an int8 base over several GPUs; it trains on one and fails at the first line on two.
# Do: quantise after sharding, each rank its own rows, with scales row by row; or keep such a base whole on each rank.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 torchao==0.18.0 numpy==2.4.6
venv/bin/python -W ignore - 2>errors.log <<'PYTHON' || { cat errors.log >&2; exit 1; }
import sys

import torch
import torchao
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

print(f"torch {torch.__version__.partition('+')[0]}, torchao {torchao.__version__}")
distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
fully_shard(nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16)).requires_grad_(False), mesh=mesh)
print("bfloat16: sharded")
taken = []
for config in (Int8WeightOnlyConfig(version=2), Float8WeightOnlyConfig(version=2)):
    net = nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16)).requires_grad_(False)
    quantize_(net, config)
    kind = type(net[0].weight).__name__
    try:
        fully_shard(net, mesh=mesh)
    except NotImplementedError as error:
        print(f"{kind}: NotImplementedError: {str(error).splitlines()[0][:150]}")
    else:
        taken.append(kind)
distributed.destroy_process_group()
if taken:
    sys.exit(f"fully_shard now takes {', '.join(taken)}.")
PYTHON
