"""Make the golden checkpoint of a release: python -m tests.fault.make_golden

The checkpoint between the two stages of a small run, and the record of its last iteration. Made once a release and kept
for good: `test_drift.py` goes on from each that there is.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from flowmap import AdamW, Ema, Recipe, Stage, __version__, distill
from flowmap.methods import anyflow
from flowmap.plugins import manager
from flowmap.training.pace import MEMORY, SPEED
from flowmap.training.store import metrics
from flowmap.training.store.checkpoint import published
from tests.toys import Toy, data

GOLDEN = Path(__file__).parent / "golden"
STEPS = 3  # of each of two stages


def run(out: Path) -> dict[str, float]:
    """Train in `out`, or go on there; the last record."""
    settings = AdamW(lr=1e-3, warmup=1)
    methods = (anyflow.forward(), anyflow.on_policy(steps=(2, 4)))
    stages = [Stage(method, STEPS, batch=4, micro=2, optimizer=settings, ema=Ema(0.5, start=1)) for method in methods]
    recipe = Recipe(Toy(width=8, shared=True), tuple(stages), seed=3, name="golden")
    distill(recipe, data(), out=out, save_minutes=0, device="cpu", pm=manager(entry_points=False))
    last = metrics.read(out / "metrics.jsonl")[-1]
    assert (last.pop("stage"), last.pop("iteration")) == (1, STEPS - 1)
    return {name: value for name, value in last.items() if name not in ("time", SPEED, MEMORY)}


def main() -> None:
    torch.set_num_threads(1)
    target = GOLDEN / __version__
    if target.exists():
        sys.exit(f"{target} exists, and a release's checkpoint is made once: remove it if it was never released")
    with tempfile.TemporaryDirectory() as folder:
        record = run(Path(folder))
        before = published(Path(folder) / "checkpoints")[-3]
        shutil.copytree(before, target / before.name)
        (target / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*') if file.is_file())} bytes")


if __name__ == "__main__":
    main()
