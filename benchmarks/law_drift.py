"""Exposure bias: how far the causal students of `law` leave their first frame's ink, chunk by chunk, in long videos.

    python -m benchmarks.law_drift --seeds 0 1 2        # benchmarks/results/law_drift.*, docs/images/history_grad.png
    python -m benchmarks.law_drift --models stage_2 history_grad
    python -m benchmarks.law_drift --minutes 30         # as much as that; the same command goes on
    python -m benchmarks.law_drift --report             # files and figure of what is there
    python -m benchmarks.law_drift --smoke --out DIR    # the same path through the code; means nothing

AnyFlow after stage 1, which has seen real history alone, after stage 2, which has seen its own, after a stage 2 with
the gradient through the history, which begins as that one does and is as long, and Self-Forcing without and with that
gradient; real clips through the VAE. Drift is the mean of | ink / ink of the first frame - 1 |, so that clips that
swell and clips that fade do not cancel; quality is the distance of single frames' glyphs to real ones. Videos are as
long as in training, and three times as long. Students are `law`'s, from --cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from attrs import evolve, frozen
from flowmap_digits import drift
from flowmap_digits.evaluation import SHAPE, curve
from flowmap_digits.videos import prompts_with, render_all
from torch import Tensor

from flowmap import Recipe
from flowmap._types import Role
from flowmap.evaluation import Samples
from flowmap.evaluation.card import sampler
from flowmap.evaluation.curve import Bench
from flowmap.evaluation.records import Point
from flowmap.model import Kind

from . import jobs, kept, law_methods
from . import law_drift_report as report
from .drift import edges
from .law import CACHE, PICTURES, RESULTS, complete
from .law_jobs import FULL, GROUPS, SMOKE, Settings, recipe, told, trained
from .law_rows import CAUSAL, GUIDANCE, MODELS, NAMES

METRICS: Mapping[str, drift.PerChunk] = {
    "absolute_drift": drift.absolute_drift,
    "glyph_distance": drift.glyph_distance,
}
REAL, REAL_SEED = "real clips through the VAE", 20250604
JOBS, KINDS = "law_drift_jobs.json", ("drift",)
SAMPLES, STEPS, LONGER, SEEDS = 64, (4, 32), (1, 3), 10
"""SEEDS: below which a seed must be, to be in the report."""
SMOKED = ("stage_2", "history_grad")


@frozen
class Drift:
    """A model, or real clips, at so many steps a chunk, in videos `longer` times as long as in training."""

    model: str
    seed: int
    steps: int
    longer: int
    samples: int
    settings: Settings
    folder: Path

    def __str__(self) -> str:
        return f"{self.model:13} {self.steps:2} steps  length × {self.longer}  seed {self.seed}"

    @property
    def title(self) -> str:
        return MODELS[self.model][0] if self.model in MODELS else REAL

    @property
    def recipe(self) -> Recipe | None:
        if self.model not in MODELS:
            return None
        _, row, stages = MODELS[self.model]
        found = recipe(NAMES[row], self.seed, self.settings, self.folder)
        return evolve(found, stages=found.stages[:stages])

    @property
    def path(self) -> Path:
        key = jobs.key(self.recipe and told(self.recipe), self.samples, GROUPS, [*METRICS])[:12]
        return self.folder / "drift" / f"{self.model}_{self.steps}_x{self.longer}_seed{self.seed}_{key}.json"

    @property
    def found(self) -> dict[str, Any] | None:
        return json.loads(self.path.read_text()) if self.path.is_file() else None

    def perform(self) -> dict[str, Any]:
        frames = self.longer * SHAPE[0]
        bench = bench_of(frames, self.samples)
        if self.recipe is None:
            made, which = bench.real(_Real(1 + 2 * (frames - 1)), self.seed), "none"
        else:
            out = trained(self.recipe, self.folder, self.settings.device)
            student = self.recipe.backbone.load(out / "student", device=torch.device("cpu"), dtype=torch.float32)
            which = sampler(self.recipe)
            point = Point("student", cast(Kind, which), self.steps, self.steps)
            made = evolve(bench, nets={"student": student}).made(point, self.seed)
        bounds = edges(bench.nets["student"], frames, made.videos.shape[1])
        place = groups_of(made.prompts)
        whole = _measured(made, torch.ones_like(place, dtype=torch.bool), bounds)
        without = [_measured(made, place != group, bounds) for group in place.unique()]
        values = {f"{metric}, last": chunks[-1] for metric, chunks in whole.items()}
        found = {"sampler": which, "bounds": list(bounds), "chunks": whole, "without": without, "values": values}
        jobs.write(self.path, found)
        return found


@frozen
class _Real:
    """Real clips of so many video frames."""

    frames: int

    def __call__(self, texts: Sequence[str], seed: int) -> Tensor:
        rng = np.random.default_rng([REAL_SEED, seed])
        return render_all(prompts_with(texts), rng, images="held_out", frames=self.frames)


def groups_of(prompts: Sequence[str]) -> Tensor:
    """Of which group each sample is: a prompt's are in different ones, every group has as many."""
    different = len(set(prompts))
    place = torch.arange(len(prompts))
    return (place // different + place % different) % min(GROUPS, len(prompts))


def _measured(made: Samples, keep: Tensor, bounds: Sequence[int]) -> dict[str, list[float]]:
    """By chunk."""
    prompts = prompts_with([text for text, wanted in zip(made.prompts, keep.tolist(), strict=True) if wanted])
    return {name: measure(made.videos[keep], prompts, bounds) for name, measure in METRICS.items()}


@cache
def bench_of(frames: int, samples: int) -> Bench:
    """Prompts and noise of videos of so many latent frames, the same for every model."""
    nets = CAUSAL.build(frozenset[Role]({"student"}), device=torch.device("cpu"), dtype=torch.float32)
    own = curve(guidance=GUIDANCE, steps=STEPS, seeds=(0,), samples=samples, real_samples=2)
    return Bench.of(evolve(own, shape=(frames, *SHAPE[1:]), real=None), nets, CAUSAL)


def jobs_of(
    models: Sequence[str],
    seeds: Sequence[int],
    steps: Sequence[int],
    samples: int,
    settings: Settings,
    folder: Path,
) -> list[Drift]:
    """One seed of every model before the next."""
    return [
        Drift(model, seed, n, longer, samples, settings, folder)
        for seed in seeds
        for model in ("real", *models)
        for longer in LONGER
        for n in (steps if model in MODELS else (0,))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.law_drift", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=[*MODELS], help="beside real clips [all]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training and of noise [0]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no job is begun")
    parser.add_argument("--cache", type=Path, help="where `law` keeps finished jobs [runs/law]")
    parser.add_argument("--out", type=Path, help="a directory for the report [benchmarks/results, not of --smoke]")
    parser.add_argument("--report", action="store_true", help="of what is there; nothing is run")
    parser.add_argument("--smoke", action="store_true", help="everything, minutely; the numbers mean nothing")
    options = parser.parse_args(argv)
    if options.smoke and options.out is None:
        parser.error("--smoke needs --out: its numbers must not take the place of the results")
    os.environ["TQDM_DISABLE"] = "1"
    failed: list[str] = []
    folder = options.cache or (options.out / "cache" if options.smoke else CACHE)
    steps, samples, settings = ((1,), 32, SMOKE) if options.smoke else (STEPS, SAMPLES, FULL)
    seeds = tuple(dict.fromkeys(options.seeds))
    models = options.models or (SMOKED if options.smoke else (*MODELS,))
    if not options.smoke:
        kept.unpack(RESULTS / JOBS, folder)
    if not options.report:
        failed = complete(jobs_of(models, seeds, steps, samples, settings, folder), 60 * options.minutes)
    found = report.summarise(jobs_of([*MODELS], range(SEEDS), steps, samples, settings, folder))
    report.write(found, options.out or RESULTS, options.out or PICTURES)
    law_methods.write(options.out or RESULTS)
    kept.pack(folder, KINDS, (options.out or RESULTS) / JOBS)
    print(report.markdown(found))
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
