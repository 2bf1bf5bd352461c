"""Trained weights of this tree beside those of another, from equal weights, data and draws: float32, 20 steps.

    git worktree add ../before 7344f60
    python -m benchmarks.parity ../before

Toy networks (2 blocks, d = 128), batch 4, adapters of rank 24 and whole networks; stages 1 and 2 on all frames at once,
stage 1 of a causal student. Three things are set equal, since they are other on purpose since then: the generators
behind `Rng` and random weights are those of 7344f60 on both sides, (t, r) are drawn by a fork on both, as here, and the
width of the difference, h, is 0.02 on both. No other thing is: `Balanced`, whose scale is another with a teacher's
velocity, is what it was with the data's, which is learnt from here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .against import ROOT, described, run, save

STEPS = 20
CASES = tuple(
    f"{stage}, {kind}" for stage in ("stage 1", "stage 2", "causal stage 1") for kind in ("adapters", "whole")
)
TRAIN = r"""
import hashlib, json, os
import torch
from attrs import evolve, frozen
from typing import Any
from flowmap import AdamW, Rng, Stage, TensorData
from flowmap.methods import anyflow
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.training.loop import Trainer
from flowmap_far import Far
from flowmap_wan21 import Lora, Wan21

torch.set_num_threads(1)
seed, steps = int(os.environ["SEED"]), int(os.environ["STEPS"])

def seeded(hashed):
    return lambda key, device: torch.Generator(device).manual_seed(hashed(key) >> 1)

@frozen
class Forked:  # (t, r) by the stream that this tree has for them
    times: Any
    def __call__(self, n, rng, like):
        return self.times(n, rng.fork(0x714E5), like)

try:  # the generators that the other tree has
    import flowmap._types as types
    import flowmap_diffusers.drawn as drawn
    types.generator = seeded(lambda key: int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))
    drawn.generator = seeded(lambda key: int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
    forked = lambda objective: objective
except ImportError:
    forked = lambda objective: evolve(objective, times=Forked(objective.times))

SIZES = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 4, "out_channels": 4,
    "text_dim": 32, "freq_dim": 64, "ffn_dim": 512, "num_layers": 2, "rope_max_seq_len": 64,
}
def weights(stage, kind):
    causal = "causal" in stage
    shape, text = (7 if causal else 3, 4, 8, 8), (8, 32)
    more = {"partition": (1, 2, 2, 2), "full": 2} if causal else {}
    adapters = Lora(24, 24.0) if kind == "adapters" else None
    spec = (Far if causal else Wan21)(config=SIZES, lora=adapters, text_length=8, text_tokens=8, **more)
    roles = frozenset({"student", "teacher", "critic"} if stage == "stage 2" else {"student"})
    nets = spec.build(roles, device=torch.device("cpu"), dtype=torch.float32)
    for role in sorted(nets):
        for key, p in sorted(nets[role].trained().items()):
            if "lora_" in key:
                draw = Rng.seeded(1, *hashlib.sha256(f"{role} {key}".encode()).digest()[:4])
                p.data.copy_((1e-2 if "lora_B" in key else p.shape[1] ** -0.5) * draw.noise_like(p))
    rng = Rng.seeded(2 + seed)
    x, texts = (rng.noise_like(torch.zeros(16, *size)) for size in (shape, text))
    method = (anyflow.on_policy if stage == "stage 2" else anyflow.forward)(h=0.02)
    updates = tuple(
        evolve(update, terms=tuple((w, forked(o) if isinstance(o, FlowMapMatching) else o) for w, o in update.terms))
        for update in method.updates
    )
    trained = Stage(evolve(method, updates=updates), steps=steps, batch=4, optimizer=AdamW(lr=1e-4))
    trainer = Trainer(nets, trained, TensorData(x, {"text": texts}, {"text": torch.zeros(1, *text)}), seed)
    def now():
        return {f"{role} {n}": p.detach().clone() for role, ps in trainer.trained.items() for n, p in ps.items()}
    began = now()
    for i in range(steps):
        trainer.step(i)
    return {"began": began, "trained": now()}

cases = json.loads(os.environ["CASES"])
torch.save({case: weights(*case.split(", ")) for case in cases}, os.environ["FILE"])
print(json.dumps(cases))
"""


def differences(a: Mapping[str, Mapping[str, Tensor]], b: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Of weights before and after training, by name; a ValueError where the two do not begin alike.

    weights: the largest over tensors of ‖b - a‖ / ‖a‖. way: ‖b - a‖ / ‖a - began‖ of all of them, which is the larger
    the less has been trained.
    """
    if a["began"].keys() != b["began"].keys() or any(not x.equal(b["began"][n]) for n, x in a["began"].items()):
        raise ValueError("the two trees do not begin with the same weights: set equal what they begin with")
    off = {name: float((b["trained"][name] - x).norm()) for name, x in a["trained"].items()}
    size = {name: float(x.norm()) for name, x in a["trained"].items()}
    way = {name: float((x - a["began"][name]).norm()) for name, x in a["trained"].items()}

    def norm(values: Mapping[str, float]) -> float:
        return sum(v * v for v in values.values()) ** 0.5

    return {
        "weights": max(off[name] / size[name] for name in off if off[name]) if any(off.values()) else 0.0,
        "way": norm(off) / norm(way),
        "moved": norm(way) / norm(size),
    }


def compared(
    other: Path, cases: Sequence[str] = CASES, *, steps: int = STEPS, seeds: tuple[int, int] = (0, 0)
) -> dict[str, dict[str, float]]:
    """The differences of each case; seeds: of draws and data, the other tree's and this one's."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for tree, seed in zip((other, ROOT), seeds, strict=True):
            file = Path(directory) / "weights.pt"
            run(tree, TRAIN, CASES=json.dumps(cases), STEPS=steps, SEED=seed, FILE=file)
            found.append(torch.load(file))
    return {case: differences(found[0][case], found[1][case]) for case in cases}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "parity.json")
    options = parser.parse_args(arguments)
    results = compared(options.other.resolve(), [case for case in CASES if options.only in case])
    for case, found in results.items():
        print(case, *(f"{name} {value:.2e}" for name, value in found.items()))
    save(options.out, {"machine": described(options.other), "steps": STEPS, "results": results})


if __name__ == "__main__":
    main()
