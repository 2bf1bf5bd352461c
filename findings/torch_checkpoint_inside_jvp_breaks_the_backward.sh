#!/usr/bin/env bash
# Expected: a network whose blocks are recomputed, `checkpoint(block, z, use_reentrant=False)`, can be used inside of
# torch.func.jvp as without: value, derivative, and a backward pass through either.
# Seen: value and derivative are right, and every backward pass raises CheckpointError, that of the value alone, too: the
# recomputation runs outside of the jvp and saves other tensors than the forward pass inside.
# Hurts: MeanFlow, sCM and every objective whose target has d/dt of the network, with activation checkpointing on, in the
# first step; a trial without a backward pass shows nothing.
# Do: checkpoint around the jvp, which gives the same gradients; or a difference of two calls for the derivative.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy
venv/bin/python - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.func import jvp
from torch.utils.checkpoint import CheckpointError, checkpoint

print(f"torch {torch.__version__}")
torch.manual_seed(0)
block = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)).double()
z, v = torch.randn(2, 4, 8, dtype=torch.float64)


def recomputed(z):
    return checkpoint(block, z, use_reentrant=False)


def gradient(of):
    block.zero_grad()
    of.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in block.parameters()])


plain, inside = jvp(block, (z,), (v,)), jvp(recomputed, (z,), (v,))
print("inside: value and derivative differ by", *(f"{float((a - b).detach().abs().max()):.0e}" for a, b in zip(plain, inside)))
expected, refused = gradient(plain[0]), False
try:
    gradient(inside[0])
except CheckpointError as error:
    refused = True
    print("inside, backward of the value:", str(error).splitlines()[0])
around = checkpoint(lambda z: jvp(block, (z,), (v,)), z, use_reentrant=False)
print(f"around: the value's gradient differs by {float((gradient(around[0]) - expected).abs().max()):.0e}")
if not refused:
    sys.exit("A checkpoint inside of torch.func.jvp can now be run backward.")
PYTHON
