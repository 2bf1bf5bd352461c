#!/usr/bin/env bash
# Expected: FlowMapEulerDiscreteScheduler.step takes a tensor of times, one a sample (its documentation says "float or
# torch.Tensor", for any-step jumps), and moves every sample from its own t to its own r.
# Seen: so it does, unless the first time of the batch is one of the schedule's: then all samples are moved by the first
# one's. The same two samples in the other order come out right. There is no warning.
# Hurts: batches of samples at different times: training rollouts with a drawn t, a server that joins requests.
# Do: z - (t - r) u by hand, or one time for a batch.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import sys

import diffusers
import torch
from diffusers import FlowMapEulerDiscreteScheduler

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
scheduler = FlowMapEulerDiscreteScheduler(shift=5.0)
scheduler.set_timesteps(4)
print(f"the schedule: {[round(t, 1) for t in scheduler.timesteps.tolist()]}, then 0; z = 0, u = 1, r = 0: z_r is -t / 1000")
seen = {}
for t in ((500.0, 1000.0), (1000.0, 500.0)):
    z = scheduler.step(torch.ones(2, 3), torch.tensor(t), torch.zeros(2, 3), r_timestep=torch.zeros(2)).prev_sample
    seen[t] = z[:, 0].tolist()
    print(f"t = {t}: z_r = {seen[t]}")
if seen != {(500.0, 1000.0): [-0.5, -1.0], (1000.0, 500.0): [-1.0, -1.0]}:
    sys.exit("FlowMapEulerDiscreteScheduler.step no longer moves a batch by its first time.")
PYTHON
