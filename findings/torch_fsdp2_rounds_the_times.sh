#!/usr/bin/env bash
# Expected: `fully_shard` with `MixedPrecisionPolicy(param_dtype=torch.bfloat16)` gathers weights in bfloat16 and
# computes with them, as autocast does; what a network is told beside the video, its time, arrives as it was given.
# Seen: every floating-point tensor among the arguments is cast as well, positional or by name, in tuples, too.
# The network sees the time 937.5 as 936 and 833.25 as 832, before its embedding computes in float32; rotary tables that
# are handed to blocks are rounded alike. The output is bfloat16. Under autocast the time is 937.5.
# Hurts: whoever trains in FSDP2 and samples without it: above 512 of 1000, times are 4 apart, above 256, 2. A
# difference in time may compare equal times.
# Do: `MixedPrecisionPolicy(..., cast_forward_inputs=False)` for the root and for blocks, and cast the video oneself.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import sys
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

print(f"torch {torch.__version__}")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, z, *, t, rotary):
        self.seen = t.tolist(), rotary[0].dtype
        return self.linear(z.to(self.linear.weight.dtype))


def told(**policy):
    net = Network()
    fully_shard(net, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, **policy))
    out = net(z, t=t, rotary=(torch.ones(4), torch.ones(4)))
    return *net.seen, out.dtype


z, t = torch.randn(3, 4), torch.tensor([937.5, 833.25, 500.25])
with tempfile.NamedTemporaryFile() as store:
    dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    default, spared = told(), told(cast_forward_inputs=False)
    dist.destroy_process_group()
net = Network()
with torch.autocast("cpu", torch.bfloat16):
    out = net(z, t=t, rotary=(torch.ones(4), torch.ones(4)))
autocast = *net.seen, out.dtype
print(f"given: times {t.tolist()}")
for name, (times, rotary, dtype) in {"FSDP2": default, "FSDP2, cast_forward_inputs=False": spared,
                                     "autocast": autocast}.items():
    print(f"{name}: times {times}, rotary table {rotary}, output {dtype}")
if not (spared[0] == autocast[0] == t.tolist() and default[0] == [936.0, 832.0, 500.0]
        and default[1] == torch.bfloat16 and spared[1] == torch.float32):
    sys.exit("FSDP2's mixed precision now leaves the times as they are.")
PYTHON
