"""How long a checkpoint stops the training loop, and what it costs in CPU seconds, beside another checkout.

A network of 19 million weights in float32, trained whole with averages: 300 MB a checkpoint, three of them in a stage
whose iterations take longer, together, than a disk does. Stopped is what `Saves.agreed` and `Saves.save` take from the
iteration of a save to that before the next, less what `agreed` takes where nothing is saved.

python -m benchmarks.saves --other DIR [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .against import beside, write

RUN = r"""
import json, os, resource, tempfile, time
from statistics import median
import torch
from torch import nn
from flowmap import AdamW, Ema, ModuleSpec, Recipe, Rng, Stage, TensorData, distill
from flowmap.methods import flow_matching
from flowmap.training.saving import Saves

WIDTH, STEPS, AT = 2500, 60, (10, 25, 40)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64))
        self.inp, self.out = nn.Linear(64 + 64, WIDTH), nn.Linear(WIDTH, 64)
        self.mid = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, z, t, r):
        x = torch.cat([z.flatten(1), self.embed(torch.stack([t, r], -1))], -1)
        x = self.inp(x)
        for layer in self.mid:
            x = x + layer(torch.nn.functional.silu(x))
        return self.out(x).view_as(z)

agreed, save, calls = Saves.agreed, Saves.save, []

def timed(function):
    def call(*given, **named):
        began = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            calls[-1] += time.perf_counter() - began
    return call

def asked(self, stop):
    calls.append(0.0)
    found = timed(agreed)(self, stop)
    return found[0], len(calls) in AT

Saves.agreed, Saves.save = asked, timed(save)
torch.manual_seed(0)
recipe = Recipe(
    ModuleSpec(Net, time=None),
    (Stage(flow_matching.flow_matching(), STEPS, batch=8, optimizer=AdamW(lr=1e-4), ema=Ema()),),
)
data = TensorData(Rng.seeded(0).noise_like(torch.zeros(64, 1, 1, 8, 8)))
with tempfile.TemporaryDirectory() as out:
    began, cpu = time.perf_counter(), time.process_time()
    distill(recipe, data, out=out, save_minutes=1e9, device="cpu")
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
quiet = median(calls[: AT[0] - 1])
stops = [sum(calls[a - 1 : b - 1]) - (b - a) * quiet for a, b in zip(AT, (*AT[1:], STEPS - 5))]
print(json.dumps({
    "stopped by a checkpoint, s": median(stops),
    "the run, wall s": wall,
    "the run, CPU s": cpu,
    "peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/saves.json"))
    options = parser.parse_args()
    write(options.out, options.other, beside(options.other.resolve(), RUN, rounds=options.rounds))


if __name__ == "__main__":
    main()
