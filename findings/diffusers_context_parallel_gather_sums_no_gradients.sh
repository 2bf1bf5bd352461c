#!/usr/bin/env bash
# Expected: when two ranks share a sequence by diffusers' context parallelism, and each gathers the whole output and
# takes its loss of it, the mean of the ranks' gradients, which DDP and FSDP make, is the gradient of one process: the
# backward of a gather is a sum over the ranks, as it is of torch's `all_gather_single_autograd`.
# Seen: `AllGatherFunction.backward` takes the rank's own part of its own gradient and asks no other rank. Of one loss
# on all ranks the mean over n ranks is 1 / n of the gradient. Of a loss that differs between ranks, as with a weight
# or a time that each draws for itself, what a rank says of the others' parts is lost, and no factor brings it back.
# Hurts: training with `enable_parallelism`: a clipped norm or SGD is off by n, and the second case is wrong in silence.
# Do: take the same loss on all ranks and sum the gradients (which is right for each weight of a Wan), not their mean;
# or gather with the function of torch.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
cat > ranks.py <<'PYTHON'
import sys

import diffusers
import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import EquipartitionSharder
from torch.distributed._functional_collectives import all_gather_single_autograd

RANKS = 2
GATHERS = {
    "diffusers": lambda part, mesh: EquipartitionSharder.unshard(part, 1, mesh),
    "torch": lambda part, mesh: all_gather_single_autograd(part.contiguous(), 1, mesh.get_group()),
}
torch.manual_seed(0)
W, X, AIM = torch.randn(3, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 3)
SAYS = {"one loss on all ranks": [torch.ones(4)] * RANKS, "a loss of each rank": [*torch.rand(RANKS, 4)]}


def gradient(weights, shard=lambda x: x, gather=lambda y: y):
    w = W.clone().requires_grad_()
    (weights[:, None] * (gather(torch.tanh(shard(X) @ w)) - AIM) ** 2).sum().backward()
    return w.grad


def run(rank, store, found):
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    mesh = dist.init_device_mesh("cpu", (RANKS,))
    for case, weights in SAYS.items():
        for name, gather in GATHERS.items():
            mean = gradient(weights[rank], lambda x: EquipartitionSharder.shard(x, 1, mesh), lambda y: gather(y, mesh))
            dist.all_reduce(mean)
            found[case, name] = (mean / RANKS).tolist()
    dist.destroy_process_group()


if __name__ == "__main__":
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, {RANKS} ranks of gloo")
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(run, (f"file://{sys.argv[1]}", found), RANKS)
        found = {key: torch.tensor(value) for key, value in found.items()}
    off = {}
    for case, weights in SAYS.items():
        whole = sum(gradient(each) for each in weights) / RANKS
        for name in GATHERS:
            mean = found[case, name]
            factor = (mean * whole).sum() / mean.square().sum()
            off[case, name] = [float((scale * mean - whole).norm() / whole.norm()) for scale in (1, factor)]
            print(f"{case}, gathered by {name}: the mean of the gradients is off by {off[case, name][0]:.1%}, and by"
                  f" {off[case, name][1]:.1%} when it is scaled by {factor:.3f}")
    if max(off[case, "torch"][0] for case in SAYS) > 1e-5:
        sys.exit("The gather of torch no longer sums the gradients: this comparison says nothing.")
    if min(off[case, "diffusers"][0] for case in SAYS) < 0.1:
        sys.exit("The gather of diffusers now sums the gradients over the ranks.")
PYTHON
venv/bin/python -W ignore::FutureWarning ranks.py "$directory/store"
