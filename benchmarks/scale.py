"""How a training step's cost grows: with frames, batch, the adapters' rank, and the number of processes.

    python -m benchmarks.scale
    python -m benchmarks.scale --smoke --out DIR     # the same path through the code; the numbers mean nothing

Stage 1 of AnyFlow on a toy Wan, and a causal one that trains on all of its chunks. Cost is CPU seconds of one thread,
with the sizes of a curve in turns, and operations, counted by `flowmap.planning.counts.Ledger` in the same iterations.
An exponent is the slope of log cost over log size by least squares; `last` is that of the two largest sizes. Of
processes (torchrun, gloo, FSDP2, one global batch) the cost is a process's, and they run one number after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from attrs import frozen
from flowmap_far import Far
from flowmap_wan21 import Lora, Wan21

from flowmap import AdamW, Recipe, Rng, Stage, TensorData
from flowmap.methods import anyflow
from flowmap.planning.counts import Ledger
from flowmap.training.loop import Trainer
from flowmap.training.ranks.distributed import Distribution, joined, world
from flowmap.training.ranks.networks import spread

from .large_step import Prefix
from .report import hardware

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
CPU = torch.device("cpu")
WIDTH = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 512, "num_layers": 2, "rope_max_seq_len": 64}
CHUNK, TEXT = 2, 16


@frozen
class Work:
    """A training step; latents are 16 × 16, so that a frame has 64 tokens."""

    frames: int = 4
    batch: int = 2
    rank: int = 16
    dtype: str = "float32"
    causal: bool = False

    def trainer(self) -> Trainer:
        tiny = (Far if self.causal else Wan21)().tiny()
        more: dict[str, Any] = {"partition": (CHUNK,) * (self.frames // CHUNK), "long": 1.0} if self.causal else {}
        spec = type(tiny)(
            config={**tiny.config, **WIDTH}, lora=Lora(self.rank, float(self.rank)),
            text_length=TEXT, text_tokens=TEXT, **more,
        )  # fmt: skip
        rng, text = Rng.seeded(0), torch.zeros(self.batch, TEXT, spec.config["text_dim"])
        x = rng.noise_like(torch.zeros(self.batch, self.frames, spec.config["in_channels"], 16, 16))
        data = TensorData(x, {"text": rng.noise_like(text)}, {"text": text[:1]})
        stage = Stage(anyflow.forward(guidance=3.0), steps=1000, batch=self.batch, optimizer=AdamW(lr=1e-6))
        nets = spread(Recipe(spec, (stage,), data=data), CPU, getattr(torch, self.dtype), Distribution(), judged=False)
        if self.causal:
            nets = {role: Prefix(u, self.frames // CHUNK) for role, u in nets.items()}
        return Trainer(nets, stage, data)


Curve = Mapping[int, Work]
CURVES: Mapping[str, Curve] = {
    "frames": {n: Work(frames=n) for n in (2, 4, 8, 16)},
    "frames, causal": {n: Work(frames=n, causal=True) for n in (8, 16, 32)},
    "batch": {n: Work(batch=n) for n in (1, 2, 4, 8)},
    "adapters' rank": {n: Work(rank=n) for n in (4, 16, 64, 256)},
    "adapters' rank, bfloat16": {n: Work(rank=n, dtype="bfloat16") for n in (4, 16, 64, 256)},
}
SHARED, PROCESSES = Work(batch=6), (1, 2, 3)


def measured(trainers: Mapping[int, Trainer], rounds: int) -> dict[int, dict[str, float]]:
    """By size, of an iteration: the mean over the same iterations for all. The first round warms up."""
    cost: dict[int, list[float]] = {size: [] for size in trainers}
    for i in (0, *range(rounds)):
        for size, trainer in trainers.items():
            began = time.process_time()
            trainer.step(i)
            cost[size].append(time.process_time() - began)
    return {
        size: {"seconds": mean(cost[size][1:]), "operations": mean(operations(trainer, i) for i in range(rounds))}
        for size, trainer in trainers.items()
    }


def curve(its: Curve, rounds: int) -> dict[int, dict[str, float]]:
    return measured({size: work.trainer() for size, work in its.items()}, rounds)


def operations(trainer: Trainer, iteration: int) -> int:
    with Ledger() as ledger:
        trainer.step(iteration)
    return ledger.get_total_flops()


def exponents(found: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of seconds and of operations."""
    slopes = {}
    for name in ("seconds", "operations"):
        points = [(math.log(size), math.log(its[name])) for size, its in sorted(found.items())]
        slopes[name] = {"all": slope(points), "last": slope(points[-2:])}
    return slopes


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line by least squares."""
    xs, ys = zip(*points, strict=True)
    x, y = mean(xs), mean(ys)
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a in xs)


def processes(number: int, rounds: int) -> dict[str, float]:
    """Of one of `number` processes that share a batch, the mean over them."""
    if number == 1:
        return measured({1: SHARED.trainer()}, rounds)[1]
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(number)]
        start += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        path = f"{ROOT}{os.pathsep}{ROOT / 'plugins'}"
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        asked = ["-m", "benchmarks.scale", "--share", folder, "--rounds", str(rounds)]
        subprocess.run([*start, *asked], env=environment, cwd=ROOT, check=True, capture_output=True)
        each = [json.loads(file.read_text()) for file in Path(folder).iterdir()]
    return {name: mean(its[name] for its in each) for name in each[0]}


def share(folder: Path, rounds: int) -> None:
    """What one process of torchrun does."""
    with joined(Distribution(), CPU):
        found = measured({world(): SHARED.trainer()}, rounds)[world()]
        (folder / os.environ["RANK"]).write_text(json.dumps(found))


def table(curves: Mapping[str, Any]) -> str:
    lines = ["| | sizes | CPU seconds | 10⁹ operations | exponent of seconds, at the end | of operations, at the end |"]
    lines.append("|---|---|---|---|--:|--:|")
    for name, found in curves.items():
        points = found["points"]
        row = [name, ", ".join(points)]
        row += [", ".join(f"{its['seconds']:.2f}" for its in points.values())]
        row += [", ".join(f"{its['operations'] / 1e9:.1f}" for its in points.values())]
        row += [f"{s['all']:.2f}, {s['last']:.2f}" for s in found["exponents"].values()]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS.parent, help="where scale.json goes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="two sizes of each, once; the numbers mean nothing")
    parser.add_argument("--share", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.share is not None:
        return share(asked.share, asked.rounds)
    rounds, few = (1, 2) if asked.smoke else (asked.rounds, None)
    work: dict[str, Callable[[], dict[int, dict[str, float]]]] = {
        name: partial(curve, dict([*its.items()][:few]), rounds) for name, its in CURVES.items()
    }
    work["processes"] = lambda: {n: processes(n, rounds) for n in PROCESSES[:few]}
    told: dict[str, Any] = {"hardware": hardware(), "rounds": rounds, "curves": {}}
    for name, run in work.items():
        points = run()
        told["curves"][name] = {
            "points": {str(n): its for n, its in points.items()},
            "exponents": exponents(points),
            "load": round(os.getloadavg()[0], 1),
        }
        (asked.out / RESULTS.name).write_text(json.dumps(told, indent=1) + "\n")
    print(table(told["curves"]))


if __name__ == "__main__":
    main()
