#!/usr/bin/env bash
# torch==2.13.0, onnx==1.23.2, onnxscript==0.7.2, onnxruntime==1.32.0, on a CPU.
#
# torch.onnx.export(dynamo=True) writes a convolution in bfloat16 at opset 18 to 21, torch's default among them, without
# a warning. ONNX has bfloat16 for Conv from opset 22 on, so the file is not valid: onnx.checker.check_model(model) passes,
# and with full_check=True the same call refuses it, as ONNX Runtime does (INVALID_GRAPH).
#
#   opset 18: checker ok, full_check: [ShapeInferenceError] (op_type:Conv, ...): X typestr: T, has unsupported type: tensor(bfloat16)
#   opset 22: checker ok, full_check ok
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cat > "$work/run.py" <<'PY'
import sys

import onnx
import onnxruntime
import torch

net = torch.nn.Conv2d(4, 8, 3).to(torch.bfloat16).eval()
x = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)
found = {}
for opset in (18, None, 22):
    torch.onnx.export(net, (x,), f"{sys.argv[1]}/{opset}.onnx", dynamo=True, opset_version=opset, verbose=False)
    model = onnx.load(f"{sys.argv[1]}/{opset}.onnx")
    onnx.checker.check_model(model)
    try:
        onnx.checker.check_model(model, full_check=True)
        said = "ok"
    except onnx.shape_inference.InferenceError as error:
        said = str(error).strip().splitlines()[-1]
    found[opset] = said
    version = next(o.version for o in model.opset_import if not o.domain)
    print(f"opset {opset or f'by default, {version}'}: checker ok, full_check: {said}")
    try:
        onnxruntime.InferenceSession(f"{sys.argv[1]}/{opset}.onnx", providers=["CPUExecutionProvider"])
    except Exception as error:
        print("  ONNX Runtime:", str(error).splitlines()[0][:160])
assert "bfloat16" in found[18] and "bfloat16" in found[None], "torch writes a valid file or refuses now"
assert found[22] == "ok", found[22]
PY
"$work/venv/bin/python" -W ignore "$work/run.py" "$work"
