"""Stage 1 of a causal student, forward and backward pass, in CPU seconds, beside another checkout.

4 blocks of width 256 with adapters of rank 32, 15 latent frames in chunks of 3, the last 3 chunks at full resolution;
guidance, half of the samples on the diagonal. Two rows: as it is, and with the history encoded anew in the derivative.

python -m benchmarks.causal_step --other DIR [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .against import beside, write

STEP = r"""
import json, time
from statistics import median
import torch
from attrs import evolve, fields
from flowmap import Batch, Rng
from flowmap._types import Shared
from flowmap.methods import anyflow
from flowmap_far import Far, Lora

torch.set_num_threads(1)
tiny = Far().tiny()
config = {**tiny.config, "num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 4, "ffn_dim": 1024}
spec = evolve(tiny, config=config, lora=Lora(rank=32, alpha=32), partition=(3,) * 5, full=3, long=0.5)
rng = Rng.seeded(0)
x, text = (rng.noise_like(torch.zeros(s)) for s in ((4, 15, 4, 8, 8), (4, tiny.text_tokens, 16)))
batch = Batch(x, {"text": text}, {"text": torch.zeros_like(text[:1])})
(_, objective), = anyflow.forward().updates[0].terms

def step(keeps):
    known = "keep_history" in {f.name for f in fields(Far)}
    made = evolve(spec, keep_history=keeps) if known else spec
    u = made.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    def seconds(draw):
        began = time.process_time()
        objective({"student": u}, batch, Rng.seeded(draw), Shared()).value.backward()
        return time.process_time() - began
    return seconds

kept, anew = step(None), step(False)
found = {"causal stage 1, s": [], "history anew, s": []}
for draw in (0, *range(4)):  # the same draws on both sides; the first warms up
    for name, seconds in zip(found, (kept, anew)):
        found[name].append(seconds(draw))
print(json.dumps({name: sum(values[1:]) for name, values in found.items()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/causal_step.json"))
    options = parser.parse_args()
    write(options.out, options.other, beside(options.other.resolve(), STEP, rounds=options.rounds))


if __name__ == "__main__":
    main()
