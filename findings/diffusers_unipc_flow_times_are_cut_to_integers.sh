#!/usr/bin/env bash
# Expected: the schedulers of flow models hand the network the time sigma x 1000, as FlowMatchEulerDiscreteScheduler
# does.
# Seen: UniPC and DPM-Solver++ cut them to integers: 625.94 becomes 625, and the first time is 999, never 1000. The
# step keeps the exact sigma, so that network and step disagree by up to 1 of 1000. Wan's checkpoints come with
# UniPC.
# Hurts: whoever trains a few-step student of Wan at exact times, or at t = 1: the pipeline never asks for it there.
# Do: take `scheduler.sigmas[:-1] * 1000` as times in a loop of one's own, or FlowMatchEulerDiscreteScheduler with
# `sigmas=`.
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
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
cut = {}
for scheduler in (UniPCMultistepScheduler(**flow), DPMSolverMultistepScheduler(**flow)):
    name = type(scheduler).__name__
    scheduler.set_timesteps(4)
    exact = scheduler.sigmas[:-1] * 1000
    cut[name] = (scheduler.timesteps.tolist(), exact.long().tolist(), (exact - scheduler.timesteps).max().item())
    print(f"{name}: times {scheduler.timesteps.tolist()}, sigmas x 1000 {[round(s, 2) for s in exact.tolist()]}")
euler = FlowMatchEulerDiscreteScheduler(shift=5.0)
euler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
print(f"FlowMatchEulerDiscreteScheduler: times {[round(t, 2) for t in euler.timesteps.tolist()]}")
if not all(times == floor and times[0] == 999 and lost > 0.5 for times, floor, lost in cut.values()):
    sys.exit("UniPC or DPM-Solver++ no longer cuts the times of a flow to integers.")
PYTHON
