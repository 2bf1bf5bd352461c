#!/usr/bin/env bash
# Expected: TF32 is set by `torch.backends.cuda.matmul.fp32_precision = "tf32"`, the name that torch's documentation
# recommends, and code that reads the older `torch.get_float32_matmul_precision()` hears what follows from it.
# Seen: torch 2.13.0 raises RuntimeError in every reader of the older names from then on, `allow_tf32` among them, and
# torch's own compiler reads those: torch/_inductor/select_algorithm.py, torch/_inductor/kernel/conv.py. The other way
# round it works: the older setters keep the new name in step.
# Hurts: a library that sets TF32 by the new name ends every program whose other libraries ask by the old one.
# Do: set it by `torch.set_float32_matmul_precision`, as long as torch itself reads that.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
venv/bin/python -W ignore - <<'PYTHON'
import re
import sys
from pathlib import Path

import torch

print(f"torch {torch.__version__.partition('+')[0]}")
torch.set_float32_matmul_precision("high")
print(f"set by the old name: the new one says {torch.backends.cuda.matmul.fp32_precision!r}")
torch.set_float32_matmul_precision("highest")
torch.backends.cuda.matmul.fp32_precision = "tf32"
raised = 0
for name, read in {
    "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision,
    "torch.backends.cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
}.items():
    try:
        print(f"set by the new name: {name} is {read()!r}")
    except RuntimeError as error:
        raised += 1
        print(f"set by the new name: {name} raises RuntimeError: {str(error).splitlines()[0][:110]}")
inductor = Path(torch.__file__).parent / "_inductor"
old = re.compile(r"allow_tf32\b|get_float32_matmul_precision\(")
files = sorted(str(f.relative_to(inductor)) for f in inductor.rglob("*.py") if old.search(f.read_text()))
print(f"files of the compiler that name the old ones: {len(files)}, {', '.join(files[:4])}")
if raised < 2:
    sys.exit("The older names can now be read after the new one was set.")
PYTHON
