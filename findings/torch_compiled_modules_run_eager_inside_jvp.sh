#!/usr/bin/env bash
# Expected: a network whose blocks are compiled, block.compile(), is compiled inside of torch.func.jvp, too, or says that
# it is not.
# Seen: inside of torch.func.jvp, torch.func.vmap and torch.autograd.forward_ad.dual_level the compiled code is not run
# and nothing is compiled: the block runs eagerly. Results are right, there is no warning, no log and no error. Compiled
# around the jvp, torch.compile(lambda z: jvp(block, (z,), (v,))), it is compiled.
# Hurts: MeanFlow and sCM with regional compilation: the call with the derivative, the dearest one, is as slow as before,
# and in plain precision beside compiled calls of other rounding.
# Do: compile around the jvp, or take the derivative from two plain calls.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy
venv/bin/python - <<'PYTHON'
import logging
import sys

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import jvp, vmap

print(f"torch {torch.__version__}")
logging.basicConfig(level=logging.WARNING)
ran = 0


def backend(graph, inputs):
    def run(*values):
        global ran
        ran += 1
        return graph(*values)

    return run


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, z):
        return z + nn.functional.silu(self.linear(z))


def dual(z):
    with forward_ad.dual_level():
        forward_ad.unpack_dual(block(forward_ad.make_dual(z, z)))


block, seen = Block(), {}
block.compile(backend=backend)
around = torch.compile(lambda z: jvp(Block.forward.__get__(block), (z,), (z,)), backend=backend)
calls = {"plain": block, "jvp": lambda z: jvp(block, (z,), (z,)), "vmap": vmap(block), "dual_level": dual, "around": around}
for name, call in calls.items():
    ran = 0
    call(torch.randn(4, 8))
    seen[name] = ran
    print(f"{name}: compiled graphs that ran: {ran}")
if seen != {"plain": 1, "jvp": 0, "vmap": 0, "dual_level": 0, "around": 1}:
    sys.exit("A compiled module is now compiled inside of torch.func.jvp.")
PYTHON
