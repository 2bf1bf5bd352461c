#!/usr/bin/env bash
# torch==2.13.0, AOTInductor, on a CPU.
#
# AOTI_RUNTIME_CHECK_INPUTS=1 makes a package compare its inputs with those it was compiled for: type, sizes, strides. A
# stride that follows from a dynamic size is not compared (torch/_inductor/codegen/cpp_wrapper_cpu.py skips strides that
# are no integers), so with the switch on a transposed input of the right sizes is read in the wrong order, silently:
#
#   contiguous: error 0.0e+00
#   transposed, same sizes and values: error 8.3e-01 relative, no error raised
#   batch 1 of Dim("batch", min=1, max=4): refused, "dim value is too small at 0, expected it to be >= 2, but got: 1"
#
# The last line is the other half: torch.export keeps the 1 of Dim(min=1) in range_constraints, and the check of the
# package that is compiled from it begins at 2.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/run.py" <<'PY'
import os

os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.export import Dim


class Net(torch.nn.Module):
    def forward(self, x):  # [batch, frames, height]: a running sum over frames
        return x.cumsum(1) * 0.5 + torch.tanh(x)


batch, frames, height = Dim("batch", min=1, max=4), Dim("frames", min=2, max=8), Dim("height", min=2, max=8)
net, x = Net(), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
program = torch.export.export(net, (x,), dynamic_shapes=({0: batch, 1: frames, 2: height},))
print("range of the batch in the program:", min(r.lower for r in program.range_constraints.values()))
package = aoti_load_package(aoti_compile_and_package(program))


def error(x):
    return float((package(x) - net(x)).norm() / net(x).norm())


sideways = x.transpose(1, 2).contiguous().transpose(1, 2)
assert torch.equal(x, sideways) and x.stride() != sideways.stride()
print(f"contiguous: error {error(x):.1e}")
print(f"transposed, same sizes and values: error {error(sideways):.1e} relative, no error raised")
assert error(x) < 1e-5 and error(sideways) > 0.1, "strides are checked now"
try:
    package(x[:1])
except RuntimeError as refused:
    print("batch 1:", str(refused).strip())
else:
    raise SystemExit("batch 1 is accepted now")
PY
"$work/venv/bin/python" -W ignore "$work/run.py"
