#!/usr/bin/env bash
# Expected: `safetensors.torch.save_file` writes the numbers that a tensor has, or raises where it cannot, as it does of a
# tensor that is not contiguous.
# Seen: `z.conj()` of torch is z with a mark that is applied when it is read, and so is the minus of `z.conj().imag`.
# The memory is written and the mark is not: the file has z, and + in place of -. Nothing is raised or logged.
# `torch.save` keeps the mark.
# Hurts: complex rotary tables, spectra and filters that are kept conjugated, for a rotation back or a transfer function:
# what is loaded rotates the other way.
# Do: `tensor.resolve_conj().resolve_neg()` before a file is written.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
venv/bin/python - <<'PYTHON'
import sys

import safetensors
import torch
from safetensors.torch import load, load_file, save, save_file

print(f"safetensors {safetensors.__version__}, torch {torch.__version__}")
turn = torch.polar(torch.ones(3), torch.arange(3.0)).conj()
one_sine = torch.polar(torch.ones(1), torch.ones(1)).conj().imag
tensors = {"rotary": turn, "sine": one_sine, "resolved": turn.resolve_conj(), "sine resolved": one_sine.resolve_neg()}
save_file(tensors, "tables.safetensors")
torch.save(tensors, "tables.pt")
found, pickled = load_file("tables.safetensors"), torch.load("tables.pt")
wrong = {name: not torch.equal(found[name], tensor) for name, tensor in tensors.items()}
for name, tensor in tensors.items():
    print(f"{name}: given {tensor.tolist()}, read back {found[name].tolist()}")
    assert torch.equal(pickled[name], tensor)
assert torch.equal(load(save(tensors))["rotary"], found["rotary"])
if wrong != {"rotary": True, "sine": True, "resolved": False, "sine resolved": False}:
    sys.exit("safetensors now writes a conjugate as it is, or refuses it.")
if not (torch.equal(found["rotary"], turn.conj()) and torch.equal(found["sine"], -one_sine)):
    sys.exit("safetensors now writes something else of a conjugate.")
PYTHON
