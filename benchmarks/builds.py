"""A training step with adapters, of this tree beside another: rounds of two processes in turn, CPU seconds, one thread.

    git worktree add ../before 7344f60
    python -m benchmarks.builds ../before --out benchmarks/results/adapters_step.json

A toy Wan (4 blocks, d = 256, 480 tokens, batch 4, LoRA of rank 48). Ratios are this tree over the other, the median of
rounds, in each of which both do a case; the other does without what it has not, such as compiled blocks. Peak memory is
of the tensors alive in a step, over those at rest. A call's python is that of 30 blocks so narrow that nothing else
counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
TOY = {
    "patch_size": (1, 2, 2), "num_attention_heads": 4, "attention_head_dim": 64, "in_channels": 4, "out_channels": 4,
    "text_dim": 32, "freq_dim": 64, "ffn_dim": 1024, "num_layers": 4, "rope_max_seq_len": 64,
}  # fmt: skip
DEEP = {**TOY, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 24, "num_layers": 30}
LATENT, TEXT, BATCH, RANK = (5, 4, 16, 24), (16, 32), 4, 48
CASES = [f"{stage}, {dtype}" for dtype in ("bfloat16", "float32") for stage in ("stage 1", "stage 2")]
CASES += ["stage 1, checkpointing, bfloat16", "stage 1, selective checkpointing, bfloat16"]
CASES += [
    "python of a call of 30 blocks, float32",
    *(f"{stage}, compiled, bfloat16" for stage in ("stage 1", "stage 2")),
]

COMPILED = ExitStack()  # until this process ends


def case(name: str) -> tuple[Callable[[int], object], list[Any]]:
    """(what is timed, the tensors at rest)."""
    import torch
    from flowmap_wan21 import Lora, Wan21

    from flowmap import AdamW, Rng, Stage, TensorData
    from flowmap.methods import anyflow
    from flowmap.training.loop import Trainer

    dtype, calls = getattr(torch, name.rpartition(", ")[2]), "python" in name
    spec = Wan21(
        lora=Lora(4 if calls else RANK, float(4 if calls else RANK)),
        checkpointing="selective"
        if "selective" in name
        else "checkpointing" in name,  # what an old tree takes for True
        text_length=TEXT[0],
        text_tokens=TEXT[0],
        config=DEEP if calls else TOY,
    )
    nets = spec.build(frozenset({"student", "teacher", "critic"}), device=torch.device("cpu"), dtype=dtype)
    rng = Rng.seeded(0)
    for u in nets.values():  # as adapters are in training
        for key, p in u.trained().items():
            if "lora_B" in key:
                p.data.copy_(1e-3 * rng.noise_like(p))
    there = [p for u in nets.values() for p in (*u.parameters(), *u.buffers())]
    if calls:
        z, text, t = torch.zeros(1, 1, 4, 2, 2), torch.zeros(1, *TEXT), torch.ones(1)
        return torch.no_grad()(lambda _: [nets["student"](z, t, t, {"text": text}) for _ in range(5)]), there
    x, text = (rng.noise_like(torch.zeros(8, *shape)) for shape in (LATENT, TEXT))
    data = TensorData(x, {"text": text}, {"text": torch.zeros(1, *TEXT)})
    method = (anyflow.forward if "stage 1" in name else anyflow.on_policy)(shift=3.0, guidance=3.0)
    with suppress(ImportError):  # an old tree compiles nothing
        from flowmap import Kernels

        if "compiled" in name:
            COMPILED.enter_context(Kernels(compile=True).running(nets, torch.device("cpu"), lambda _: None))
    trainer = Trainer(nets, Stage(method, steps=1000, batch=BATCH, optimizer=AdamW(lr=1e-6)), data)
    return trainer.step, [*there, x, text]


def worker() -> None:
    """Answers lines of `case iteration` with CPU seconds, `case peak` with bytes over rest."""
    import torch
    from held import peak

    torch.set_num_threads(1)
    known: dict[str, Any] = {}
    for line in sys.stdin:
        name, asked = json.loads(line)
        run, there = known[name] if name in known else known.setdefault(name, case(name))
        if asked == "peak":
            for u in there:
                u.grad = None
            answer = peak(lambda run=run: run(0), *there)
        else:
            start = time.process_time()
            run(asked)
            answer = time.process_time() - start
        print(json.dumps(answer), flush=True)


class Build:
    def __init__(self, tree: Path) -> None:
        path = os.pathsep.join([str(tree), str(tree / "plugins")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE), "--worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree,
        )  # fmt: skip

    def ask(self, name: str, what: Any) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([name, what]), file=self.process.stdin, flush=True)
        answer: float = json.loads(self.process.stdout.readline())
        return answer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker()
    other, ours = Build(options.other.resolve()), Build(HERE.parents[1])
    found = {}
    for name in [name for name in CASES if options.only in name]:
        rounds = []
        for i in range(-1, options.rounds):
            pair = [build.ask(name, max(i, 0)) for build in ((other, ours) if i % 2 else (ours, other))]
            rounds += [] if i < 0 else [pair if i % 2 else pair[::-1]]
        ratios = sorted(b / a for a, b in rounds)
        low, _, high = statistics.quantiles(ratios, n=4)
        found[name] = {"ratio": statistics.median(ratios), "quartiles": [low, high], "rounds": len(rounds)}
        found[name] |= dict(
            zip(("before_seconds", "seconds"), map(statistics.median, zip(*rounds, strict=True)), strict=True)
        )
        if "python" not in name and "compiled" not in name:
            before, after = (build.ask(name, "peak") for build in (other, ours))
            found[name] |= {"before_peak_bytes": before, "peak_bytes": after, "peak_ratio": after / before}
        print(name, json.dumps(found[name]), flush=True)
        if options.out is not None:
            import torch

            about = {
                "torch": torch.__version__,
                "cores": os.cpu_count(),
                "load_average": [round(x, 1) for x in os.getloadavg()],
            }
            options.out.write_text(json.dumps({"other": options.other.name, **about, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
