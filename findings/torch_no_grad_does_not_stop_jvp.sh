#!/usr/bin/env bash
# Expected: a part of a network in `with torch.no_grad():` is a constant of differentiation, as a `detach()` makes it;
# torch.func.jvp and torch.func.grad agree.
# Seen: jvp goes through it: no_grad stops the backward pass alone. Of f(z) = z**2 under no_grad, jvp says 2 z and grad
# says 0. `detach()`, `.data` and inference_mode are constants to both. There is no warning.
# Hurts: MeanFlow and sCM, whose target is d/dt of a network along the flow. A time embedding, a table or a first frame
# that is computed under no_grad is in the derivative, and one that is detached is not, though both read as "no gradient
# here"; a detached time makes the derivative of a time wrong, where a difference of two calls has it.
# Do: hold a jvp against a central difference, in float64, once for every network.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import sys

import torch

print(f"torch {torch.__version__}")


def under_no_grad(z):
    with torch.no_grad():
        square = z**2
    return square + 0 * z


def under_inference_mode(z):
    with torch.inference_mode():
        square = z**2
    return square + 0 * z


functions = {"plain": lambda z: z**2, "no_grad": under_no_grad, "inference_mode": under_inference_mode,
             "detach": lambda z: (z**2).detach() + 0 * z, "data": lambda z: (z**2).data + 0 * z}
z, one, step = torch.tensor(3.0, dtype=torch.float64), torch.ones((), dtype=torch.float64), 1e-4
seen = {}
for name, f in functions.items():
    forward = float(torch.func.jvp(f, (z,), (one,))[1])
    difference = float((f(z + step) - f(z - step)) / (2 * step))
    leaf = z.clone().requires_grad_()
    try:
        backward = float(torch.autograd.grad(f(leaf), leaf)[0])
    except RuntimeError:
        backward = None
    seen[name] = forward, backward
    print(f"{name}: difference {difference:.3f}, jvp {forward:.3f}, backward {backward}")
if seen["plain"] != (6.0, 6.0) or seen["no_grad"] != (6.0, 0.0) or seen["detach"] != (0.0, 0.0):
    sys.exit("torch.no_grad now stops torch.func.jvp.")
PYTHON
