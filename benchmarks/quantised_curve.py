"""The any-step curve of a student whose frozen base is in few bits, beside that of one whose base is in float32.

    python -m benchmarks.quantised_curve                 # some forty minutes of one core; resumable, a base at a time
    python -m benchmarks.quantised_curve --smoke --out DIR

The law's AnyFlow (stages 1 and 2, no guidance) with adapters of rank 32: one base is student, teacher and critic. The
students that are judged are those on disk, adapters fused into the unquantised weights, on the same noise and beside
the same real clips. Standard errors leave out one eighth of the samples in turn, those of differences on both sides.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_lora import Lora
from flowmap_lora.bits import Bits
from flowmap_wan21 import Wan21

from flowmap import Recipe, distill
from flowmap.evaluation.records import Point
from flowmap.training.run import environment

from . import budget
from .curves import interval
from .jobs import ROOT, write
from .law_jobs import FULL, SMOKE, Settings, bench_of, measured
from .law_rows import BATCH, SHIFT, Ours

RESULTS = ROOT / "benchmarks" / "results"
BASES: Mapping[str, Bits | None] = {"float32": None, "int8": "int8"}
METRICS = ("energy_distance", "feature_distance", "variety")
RANK = 32


def recipe(base: Bits | None, settings: Settings) -> Recipe:
    spec = Wan21(TINY_WAN, lora=Lora(RANK), text_tokens=12, shift=SHIFT, base=base)
    stages = tuple(
        budget.scaled(evolve(stage, batch=BATCH), settings.batch, settings.shorter, 1.0) for stage in Ours().stages()
    )
    return Recipe(spec, stages, data=MovingDigits(count=settings.clips), name="quantised_curve")


def judged(base: Bits | None, settings: Settings) -> dict[str, Any]:
    """By number of steps: the metrics, and of the same samples without each of the groups in turn."""
    asked = recipe(base, settings)
    bench = bench_of(settings)
    with tempfile.TemporaryDirectory() as out:
        distill(asked, out=out, device="cpu")
        student = evolve(asked.backbone, base=None).load(
            Path(out) / "student", device=torch.device("cpu"), dtype=torch.float32
        )
        ours = evolve(bench, nets={"student": student})
        return {str(n): measured(ours.made(Point("student", "flow_map", n, n), 0)) for n in settings.steps}


def apart(one: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> dict[str, float]:
    """one - other at a number of steps: mean, standard error of the jackknife, half of the 95 % interval."""
    without = [a[metric] - b[metric] for a, b in zip(one["without"], other["without"], strict=True)]
    middle, n = fmean(without), len(without)
    se = math.sqrt((n - 1) / n * sum((value - middle) ** 2 for value in without))
    return {"mean": one["values"][metric] - other["values"][metric], "se": se, "interval": interval(se, n)}


def table(found: Mapping[str, Any]) -> str:
    steps = list(found["bases"]["float32"])
    rows = [f"| metric | base | {' | '.join(steps)} |", "|" + "---|" * (2 + len(steps))]
    for metric in METRICS:
        for name, by_steps in found["bases"].items():
            cells = (f"{by_steps[n]['values'][metric]:.3f}" for n in steps)
            rows.append(f"| {metric.replace('_', ' ')} | {name} | {' | '.join(cells)} |")
        cells = (f"{d['mean']:+.3f} ± {d['interval']:.3f}" for d in found["differences"][metric].values())
        rows.append(f"| {metric.replace('_', ' ')} | int8 − float32, 95 % | {' | '.join(cells)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where quantised_curve.json goes [benchmarks/results, not of --smoke]")
    parser.add_argument("--smoke", action="store_true", help="a trial, which says nothing")
    options = parser.parse_args(arguments)
    if options.smoke and options.out is None:
        parser.error("--smoke needs --out: its numbers must not take the place of the results")
    os.environ["TQDM_DISABLE"] = "1"
    settings, path = SMOKE if options.smoke else FULL, (options.out or RESULTS) / "quantised_curve.json"
    bases: dict[str, Any] = json.loads(path.read_text())["bases"] if path.is_file() else {}
    found: dict[str, Any] = {}
    for name, base in BASES.items():
        if name not in bases:
            bases[name] = judged(base, settings)
        found = {"samples": settings.samples, "rank": RANK, "environment": environment(), "bases": bases}
        write(path, found)
    found["differences"] = {
        metric: {n: apart(bases["int8"][n], bases["float32"][n], metric) for n in map(str, settings.steps)}
        for metric in METRICS
    }
    write(path, found)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
