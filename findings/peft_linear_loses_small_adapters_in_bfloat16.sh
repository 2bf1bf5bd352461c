#!/usr/bin/env bash
# Expected: peft keeps the adapters of a bfloat16 base in float32, so that a young adapter's small change reaches the
# output, at least in the mean: W x + B A x, rounded once, moves a few of its numbers by a whole unit in the last place.
# Seen: its Linear rounds W x to bfloat16 first, and the adapters are added to a number that is already on the grid.
# A change below half a unit leaves it where it is, always: of one of 4e-4 of y a quarter comes out, of 4e-5 3 %. The
# same weights in one product, which is rounded once, lose nothing in the mean.
# Hurts: training in bfloat16 with a small learning rate or a zero start: the loss does not hear the first steps.
# Do: multiply [W, B] by [x, A x] in one product, as here, or hold the base in float32, until adapters are 1/200 of y.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
venv/bin/python - <<'PYTHON'
import sys

import peft
import torch
from torch import nn

print(f"peft {peft.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(512, 512, bias=False)).to(torch.bfloat16)
model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
layer = model.base_model.model[0]
w, a, b = (part.weight.data for part in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]))
print(f"base in {w.dtype}, adapters in {a.dtype}")
x = torch.randn(1024, 512).to(torch.bfloat16)
y, direction = x.double() @ w.double().T, torch.randn_like(b)
gains = {}
for share in (4e-5, 4e-4, 4e-3, 4e-2):
    b.copy_(direction)
    b.mul_(share * y.norm() / (x.double() @ (b.double() @ a.double()).T).norm())
    change = x.double() @ (b.double() @ a.double()).T
    with torch.no_grad():
        added = model(x)
        with model.disable_adapter():
            before = model(x)
    once = torch.cat([x, x @ a.T.to(x)], 1) @ torch.cat([w, b.to(w)], 1).T
    assert added.dtype == once.dtype == torch.bfloat16
    gain = {name: float(((seen.double() - before.double()) * change).sum() / change.square().sum())
            for name, seen in {"peft": added, "one product": once}.items()}
    gains[share] = gain
    print(f"a change of {share:.0e} of y: {gain['peft']:.1%} of it comes out of peft, {gain['one product']:.1%} of one"
          f" product; of the numbers of peft {(added == before).float().mean():.1%} are as before")
if any(abs(gain["one product"] - 1) > 0.02 for gain in gains.values()):
    sys.exit("One product no longer keeps the change: this comparison says nothing.")
if gains[4e-5]["peft"] > 0.2 or gains[4e-4]["peft"] > 0.5 or gains[4e-2]["peft"] < 0.98:
    sys.exit("peft now keeps small adapters of a bfloat16 base.")
PYTHON
