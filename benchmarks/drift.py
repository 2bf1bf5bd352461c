"""What becomes of a clip from chunk to chunk, before and after stage 2.

    python -m benchmarks.drift RUN --out benchmarks/results/NAME
    python -m benchmarks.drift RUN --out DIR --smoke        # the same path through the code; means nothing

RUN is a finished run of a two-stage recipe on moving digits. A causal student continues its own output: stage 1 has
shown it real history only, stage 2 its own. The student at the end of either stage, its teacher (Euler steps under
guidance) and real clips through the VAE are measured on held-out prompts, chunk by chunk (`flowmap_digits.drift`). A
student that makes all frames at once is measured in chunks of a latent frame. Writes drift.json, drift.md, drift.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from flowmap_digits import drift
from flowmap_digits.videos import prompts_with

from flowmap import FlowMap
from flowmap.cli.errors import UsageError
from flowmap.evaluation import Samples
from flowmap.evaluation.curve import Bench
from flowmap.evaluation.records import Point
from flowmap.training.store import checkpoint

from . import drift_report as report
from .drift_report import Value
from .drift_run import FULL, SMOKE, Finished, RunError, Settings, edges

MEASURES: Mapping[str, drift.PerChunk] = {
    "frame_distance": drift.frame_distance,
    "absolute_drift": drift.absolute_drift,
    "signed_drift": drift.signed_drift,
}


def run(path: Path, settings: Settings) -> dict[str, Any]:
    """What drift.json holds."""
    start, finished = time.monotonic(), Finished.of(path)
    nets = finished.networks(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    curve = evolve(finished.curve, steps=settings.steps, seeds=settings.seeds, samples=settings.samples)
    bench = Bench.of(curve, nets, finished.recipe.backbone)
    last = len(finished.recipe.stages) - 1
    values: list[Value] = []
    for model, number in (("before", last - 1), ("after", last)):
        finished.restore(nets, number)
        points = [p for p in curve.points() if p.key == ("student", "flow_map")]
        values += measured(bench, model, points, nets["student"])
    points = [p for p in curve.points() if p.model == "teacher" and p.steps in settings.steps]
    values += measured(bench, "teacher", points, nets["student"])
    if curve.real is not None:
        for seed in curve.seeds:
            values += _values("real", 0, seed, bench.real(curve.real, seed), nets["student"])
    return report.summarise(values, finished, settings, time.monotonic() - start)


def measured(bench: Bench, model: str, points: Sequence[Point], u: FlowMap) -> Iterator[Value]:
    for point in points:
        for seed in bench.curve.seeds:
            yield from _values(model, point.steps, seed, bench.made(point, seed), u)


def _values(model: str, steps: int, seed: int, made: Samples, u: FlowMap) -> Iterator[Value]:
    bounds = edges(u, made.latents.shape[1], made.videos.shape[1])
    prompts = prompts_with(made.prompts)
    make = partial(Value, model, steps, seed)
    for metric, measure in MEASURES.items():
        for chunk, value in enumerate(measure(made.videos, prompts, bounds)):
            yield make(chunk, bounds[chunk], metric, value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="few samples, few steps")
    options = parser.parse_args(arguments)
    try:
        found = run(options.run, SMOKE if options.smoke else FULL)
    except (RunError, UsageError, checkpoint.CheckpointError) as error:
        parser.error(str(error))
    report.write(found, options.out)
    print((options.out / "drift.md").read_text())


if __name__ == "__main__":
    main()
