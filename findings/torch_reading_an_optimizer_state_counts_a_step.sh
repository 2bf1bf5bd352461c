#!/usr/bin/env bash
# Expected: `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`, or `get_state_dict`, reads an optimiser
# and leaves it as it is: a run that is saved before its first step trains as one that is not.
# Seen: where the optimiser has no state yet, it makes one by a step of learning rate 0 and gradients 0, in the optimiser
# that it was given, and leaves it there. The weights stay, but AdamW now counts a step of zero gradient: its moments
# have another bias correction, and its first real step is 0.74 of what it is otherwise. There is no warning.
# Hurts: a checkpoint of iteration 0 "for safety", and a new optimiser whose state is read so as to be filled by `load`,
# where nothing is loaded after all. Two runs of one seed part at the first step.
# Do: save no optimiser before its first step; or `optimizer.state.clear()` after the call.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

print(f"torch {torch.__version__}")


def first_step(read, clear=False):
    """How far one step of AdamW goes, in units of its learning rate, and what the optimiser counts afterwards."""
    net = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(net.weight)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    if read:
        get_optimizer_state_dict(net, optimizer)
        print(f"read before the first step: {len(optimizer.state)} parameter with a state, weights {net.weight.max()}")
    if clear:
        optimizer.state.clear()
    net.weight.grad = torch.ones(2, 2)
    optimizer.step()
    return -float(net.weight.mean()) / 0.1, int(optimizer.state[net.weight]["step"])


alone, read, cleared = first_step(False), first_step(True), first_step(True, clear=True)
for name, (way, count) in {"not read": alone, "read": read, "read and cleared": cleared}.items():
    print(f"{name}: the first step goes {way:.3f} learning rates, and is counted as step {count}")
if not (abs(alone[0] - 1) < 1e-3 and alone[1] == 1 and cleared == alone and read[1] == 2 and abs(read[0] - 0.744) < 2e-3):
    sys.exit("get_optimizer_state_dict now leaves the optimiser as it was.")
PYTHON
