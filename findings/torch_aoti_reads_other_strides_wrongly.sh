#!/usr/bin/env bash
# Expected: a package of AOTInductor takes any tensor of the shape and dtype that it was compiled for, as the module
# does, or raises.
# Seen: it was compiled for the strides of the example, and reads every input as if it had them. A transposed or
# sliced view of the right shape gives wrong numbers, and a batch above the declared maximum runs: nothing is
# checked by default.
# Hurts: whoever hands latents over after a `permute`, or in channels-last, and looks at the video only.
# Do: `.contiguous()` before the call, and the environment variable `AOTI_RUNTIME_CHECK_INPUTS=1` while testing.
# (A C++ compiler is needed.)
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
venv/bin/python - <<'PYTHON'
import os
import subprocess
import sys

import torch

script = """
import os, torch
from torch.export import Dim, export
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).eval()
program = export(net, (torch.randn(4, 6, 8),), dynamic_shapes=({0: Dim("batch", min=1, max=8)},))
run = torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(program, package_path="net.pt2"))
for name, x in {"contiguous": torch.randn(3, 6, 8), "transposed": torch.randn(3, 8, 6).mT,
                "sliced": torch.randn(3, 12, 8)[:, ::2], "batch of 9": torch.randn(9, 6, 8)}.items():
    try:
        with torch.no_grad():
            print(name, tuple(x.shape), x.stride(), "error %.1e" % (run(x) - net(x)).abs().max(), sep="|")
    except RuntimeError as error:
        print(name, tuple(x.shape), x.stride(), "raises " + str(error).strip(), sep="|")
"""
print(f"torch {torch.__version__}")
seen = {}
for check in ("0", "1"):
    print(f"AOTI_RUNTIME_CHECK_INPUTS={check}")
    environment = os.environ | {"AOTI_RUNTIME_CHECK_INPUTS": check, "TORCHINDUCTOR_CACHE_DIR": f"{os.getcwd()}/{check}"}
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=environment, check=True, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    for line in out.splitlines():
        name, shape, strides, result = line.split("|")
        seen[check, name] = result
        print(f"    {name} {shape}, strides {strides}: {result}")
wrong = [name for (check, name), result in seen.items() if check == "0" and float(result.split()[-1]) > 0.1]
raised = [name for (check, name), result in seen.items() if check == "1" and result.startswith("raises")]
if wrong != ["transposed", "sliced"] or raised != ["transposed", "sliced", "batch of 9"]:
    sys.exit("AOTInductor now reads other strides rightly, or raises by default.")
PYTHON
