#!/usr/bin/env bash
# Expected: `torch.onnx.export` of a bfloat16 network succeeds only where the operators of the chosen opset take
# bfloat16.
# Seen: ONNX's Conv takes bfloat16 from opset 22 on. With the default opset, and up to 21, the export reports
# success, and `onnx.checker.check_model` too; `full_check=True` and onnxruntime refuse the file.
# Hurts: whoever exports a video transformer in bfloat16: its patch embedding is a Conv3d, and the export looks
# done.
# Do: pass `opset_version=22` or more, and check with `full_check=True`. (onnxruntime's CPU has no such Conv even
# then.)
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
venv/bin/python - <<'PYTHON'
import sys
import warnings

import onnx
import onnxruntime
import torch

warnings.simplefilter("ignore")
print(f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")
net = torch.nn.Conv3d(4, 8, (1, 2, 2), (1, 2, 2)).to(torch.bfloat16).eval()
example = torch.randn(1, 4, 2, 4, 4, dtype=torch.bfloat16)


def said(check):
    try:
        check()
        return "passes"
    except Exception as error:  # onnxruntime's classes differ from one reason to the next
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"


seen = {}
for opset in (None, 20, 21, 22, 23):
    torch.onnx.export(net, (example,), "net.onnx", dynamo=True, opset_version=opset, verbose=False)
    written = onnx.load("net.onnx").opset_import[0].version
    seen[written] = [said(lambda: onnx.checker.check_model("net.onnx")),
                     said(lambda: onnx.checker.check_model("net.onnx", full_check=True)),
                     said(lambda: onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"]))]
    print(f"opset_version={opset}, written as {written}")
    for check, result in zip(("check_model", "full_check", "onnxruntime"), seen[written], strict=True):
        print(f"    {check}: {result}")
if any((result[1] == "passes") != (opset >= 22) or result[0] != "passes" for opset, result in seen.items()):
    sys.exit("torch.onnx.export no longer writes an invalid Conv for bfloat16 below opset 22.")
PYTHON
