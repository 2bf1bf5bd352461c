#!/usr/bin/env bash
# Expected: scaled_dot_product_attention exported to ONNX gives what torch gives; for a query whose boolean mask allows no
# key that is 0.
# Seen: exported with an opset below 23 (18 is usual) the query gets the mean of all values, those of masked keys. The
# mask is made of -3.4e38, not of -inf, so the softmax is uniform, and the graph's own `Where(IsNaN(...), 0, ...)` never
# acts. With opset 23, one `Attention` node, it is 0, as in torch. Queries that see a key agree everywhere.
# Hurts: padded queries and prompts without a token: the network's output changes where nothing should have been added.
# Do: opset 23, or a mask of floats with -inf, or leave one key visible.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
venv/bin/python - 2>log <<'PYTHON'
import sys

import onnx
import onnxruntime
import torch
from torch.nn.functional import scaled_dot_product_attention

print(f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")
torch.manual_seed(0)


class Attend(torch.nn.Module):
    def forward(self, q, k, v, mask):
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)


q, k, v, mask = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8), torch.ones(4, 6).bool()
mask[1] = False
told = (q, k, v, mask)
expected = Attend()(*told)
print(f"torch: the largest element of the masked query is {float(expected[:, :, 1].abs().max()):g}")
seen = {}
for opset in (18, 23):
    torch.onnx.export(Attend(), told, dynamo=True, opset_version=opset, verbose=False).save(f"{opset}.onnx")
    session = onnxruntime.InferenceSession(f"{opset}.onnx", providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    made = torch.from_numpy(session.run(None, dict(zip(names, (one.numpy() for one in told))))[0])
    others = float((made - expected)[:, :, [0, 2, 3]].abs().max())
    seen[opset] = float(made[:, :, 1].abs().max())
    mean = float((made[:, :, 1] - v.mean(2)).abs().max())
    print(f"opset {opset}: other queries differ by {others:.0e}; the masked one's largest element is {seen[opset]:.3f}, "
          f"and it is {mean:.0e} from the mean of the values")
if seen[23] != 0 or seen[18] < 0.1:
    sys.exit("torch.onnx.export now gives 0 for a query that sees no key at every opset.")
PYTHON
