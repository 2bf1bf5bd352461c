#!/usr/bin/env bash
# Expected: FlowMatchEulerDiscreteScheduler(shift=5).set_timesteps(4) is the shifted schedule of four equal steps
# that set_timesteps(sigmas=[1, .75, .5, .25]) gives, and UniPC with flow_shift=5: 1, .938, .833, .625, 0.
# Seen: 1, .910, .717, .024, 0. Its grid runs from 1 to the smallest training sigma, which is shifted already, and
# the whole grid is shifted again. The last of four steps is spent on 2 % of noise, and the one before crosses 69 %.
# Hurts: whoever puts this scheduler into a pipeline that passes the number of steps only (WanPipeline), in few
# steps.
# Do: pass `sigmas=numpy.linspace(1, 1 / n, n)`.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import sys

import diffusers
import numpy
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
shift, n = 5.0, 4


def shown(what, sigmas):
    print(f"{what}: {[round(s, 4) for s in sigmas.tolist()]}")
    return sigmas


def shifted(s):
    return shift * s / (1 + (shift - 1) * s)


unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
unipc.set_timesteps(n)
shown("UniPC, set_timesteps(4)", unipc.sigmas)
euler = FlowMatchEulerDiscreteScheduler(shift=shift)
euler.set_timesteps(sigmas=numpy.linspace(1, 1 / n, n))
once = shown("FlowMatchEuler, sigmas=linspace(1, 1/4, 4)", euler.sigmas)
euler.set_timesteps(n)
twice = shown("FlowMatchEuler, set_timesteps(4)", euler.sigmas)
predicted = shifted(torch.linspace(1, shifted(0.001), n, dtype=torch.float64))
shown("the shift of a grid that ends in the shift of 0.001", predicted)
if not torch.allclose(twice[:-1].double(), predicted, atol=1e-5) or abs(once[-2] - 0.625) > 1e-5:
    sys.exit("FlowMatchEulerDiscreteScheduler no longer shifts the end of its grid twice.")
PYTHON
