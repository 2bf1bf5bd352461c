#!/usr/bin/env bash
# Expected: `x.shape[:2].numel()` is the product of two sizes, and `len(x)` is `x.shape[0]`, so both export with a
# dynamic batch as the product and the index do.
# Seen: `torch.export` (not strict, the default) turns both into numbers. With a named `Dim` it raises that the code
# specialised the dimension; with `Dim.AUTO` it succeeds, and the program takes the example's batch alone.
# Hurts: whoever folds batch and frames of video tokens, exports with `Dim.AUTO`, and serves other batches.
# Do: write `math.prod(x.shape[:2])` and `x.shape[0]`, and read `program.range_constraints` after the export.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import math
import sys

import torch
from torch.export import Dim, export

print(f"torch {torch.__version__}")
cases = {
    "x.shape[:2].numel()": lambda x: x.reshape(x.shape[:2].numel(), -1) * 2,
    "math.prod(x.shape[:2])": lambda x: x.reshape(math.prod(x.shape[:2]), -1) * 2,
    "len(x)": lambda x: x * len(x),
    "x.shape[0]": lambda x: x * x.shape[0],
}


class Net(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.case = cases[name]

    def forward(self, x):
        return self.case(x)


example, other = torch.randn(2, 3, 4), torch.randn(5, 3, 4)


def works(name, batch):
    """Whether the export takes another batch; the error where it or the program raises."""
    try:
        program = export(Net(name), (example,), dynamic_shapes=({0: batch},))
        program.module()(other)
        return "batch 5 runs"
    except (torch._dynamo.exc.UserError, AssertionError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


seen = {}
for name in cases:
    for batch in (Dim("batch"), Dim.AUTO):
        seen[name, str(batch)] = works(name, batch)
        print(f"{name}, {batch}: {seen[name, str(batch)]}")
refused = {key for key, result in seen.items() if result != "batch 5 runs"}
if not {name for name, _ in refused} == {"x.shape[:2].numel()", "len(x)"}:
    sys.exit("torch.export no longer pins a dynamic dimension for Size.numel and len.")
PYTHON
