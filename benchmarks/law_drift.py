"""Exposure bias: how far the causal students of `law` leave their first frame's ink, chunk by chunk, in long videos.

    python -m benchmarks.law_drift --seeds 0 1 2        # writes benchmarks/results/law_drift.{json,md}
    python -m benchmarks.law_drift --minutes 30         # as much as that; the same command goes on
    python -m benchmarks.law_drift --smoke --out DIR    # the same path through the code; means nothing

AnyFlow after stage 1, which has seen real history alone, after stage 2, which has seen its own, and Self-Forcing; real
clips through the VAE. Drift is the mean of | ink / ink of the first frame - 1 |, so that clips that swell and clips
that fade do not cancel. Videos are as long as in training, and three times as long. Students are `law`'s, from --cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
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

from . import jobs, kept
from .curves import table
from .drift import edges
from .law import CACHE, RESULTS, complete
from .law_jobs import FULL, GROUPS, SMOKE, Settings, recipe, told, trained
from .law_lines import moments_of
from .law_rows import CAUSAL, GUIDANCE, NAMES

MODELS = {
    "stage_1": ("AnyFlow, causal, stage 1", "anyflow_causal", 1),
    "stage_2": ("AnyFlow, causal, stages 1 + 2", "anyflow_causal", 2),
    "self_forcing": ("Self-Forcing, causal", "self_forcing", 2),
}
REAL, REAL_SEED = "real clips through the VAE", 20250604
JOBS, KINDS = "law_drift_jobs.json", ("drift",)
SAMPLES, STEPS, LONGER = 64, (4, 32), (1, 3)


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
    def recipe(self) -> Recipe | None:
        if self.model not in MODELS:
            return None
        _, row, stages = MODELS[self.model]
        found = recipe(NAMES[row], self.seed, self.settings, self.folder)
        return evolve(found, stages=found.stages[:stages])

    @property
    def path(self) -> Path:
        key = jobs.key(self.recipe and told(self.recipe), self.samples, GROUPS)[:12]
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
        place = torch.arange(self.samples) * min(GROUPS, self.samples) // self.samples
        whole = _drift(made, torch.ones_like(place, dtype=torch.bool), bounds)
        without = [_drift(made, place != group, bounds) for group in place.unique()]
        values = {"first": whole[0], "last": whole[-1]}
        found = {"sampler": which, "bounds": list(bounds), "drift": whole, "without": without, "values": values}
        jobs.write(self.path, found)
        return found


@frozen
class _Real:
    """Real clips of so many video frames."""

    frames: int

    def __call__(self, texts: Sequence[str], seed: int) -> Tensor:
        rng = np.random.default_rng([REAL_SEED, seed])
        return render_all(prompts_with(texts), rng, images="held_out", frames=self.frames)


def _drift(made: Samples, keep: Tensor, bounds: Sequence[int]) -> list[float]:
    return drift.absolute_drift(made.videos[keep], [], bounds)


@cache
def bench_of(frames: int, samples: int) -> Bench:
    """Prompts and noise of videos of so many latent frames, the same for every model."""
    nets = CAUSAL.build(frozenset[Role]({"student"}), device=torch.device("cpu"), dtype=torch.float32)
    own = curve(guidance=GUIDANCE, steps=STEPS, seeds=(0,), samples=samples, real_samples=2)
    return Bench.of(evolve(own, shape=(frames, *SHAPE[1:]), real=None), nets, CAUSAL)


def jobs_of(seeds: Sequence[int], steps: Sequence[int], samples: int, settings: Settings, folder: Path) -> list[Drift]:
    """One seed of every model before the next."""
    return [
        Drift(model, seed, n, longer, samples, settings, folder)
        for seed in seeds
        for model in ("real", *MODELS)
        for longer in LONGER
        for n in (steps if model in MODELS else (0,))
    ]


# ---------------------------------------------------------------------------- the report


def summarise(some: Sequence[Drift]) -> list[dict[str, Any]]:
    """A record a chunk: mean and standard error over training seeds; of one seed, over its samples."""
    return list(_records(some))


def _records(some: Sequence[Drift]) -> Iterator[dict[str, Any]]:
    for model, steps, longer in dict.fromkeys((job.model, job.steps, job.longer) for job in some):
        found = {
            job.seed: one
            for job in some
            if (job.model, job.steps, job.longer) == (model, steps, longer) and (one := job.found) is not None
        }
        first = next(iter(found.values()), None)
        for chunk, frame in enumerate(first["bounds"][:-1] if first else ()):
            by_seed = {seed: one["drift"][chunk] for seed, one in found.items()}
            without = {seed: [w[chunk] for w in one["without"]] for seed, one in found.items()}
            yield {
                "method": model,
                "title": MODELS[model][0] if model in MODELS else REAL,
                "sampler": first["sampler"] if first else None,
                "metric": "absolute_drift",
                "better": "lower",
                "steps": steps,
                "longer": longer,
                "chunk": chunk,
                "first_frame": frame,
                **moments_of(by_seed, without),
                "samples": some[0].samples,
            }


def markdown(records: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# Drift from chunk to chunk",
        "",
        "Written by `python -m benchmarks.law_drift`; `law_drift.json` holds all. Mean of | ink / ink of the first "
        "frame − 1 | in percent, ± standard error over training seeds (n), or with one seed over its samples; a chunk "
        "is a latent frame.",
        "",
    ]
    for longer in dict.fromkeys(r["longer"] for r in records):
        some = [r for r in records if r["longer"] == longer]
        chunks = sorted({r["chunk"] for r in some})
        shown = chunks if len(chunks) <= 5 else [k for k in chunks if k % 2 == 0]
        rows = []
        for method, steps in dict.fromkeys((r["method"], r["steps"]) for r in some):
            at = {r["chunk"]: r for r in some if (r["method"], r["steps"]) == (method, steps)}
            name = at[0]["title"] + (f", {steps} steps" if steps else "")
            cells = [f"{100 * at[k]['mean']:.1f} ± {100 * at[k]['se']:.1f}" for k in shown]
            rows.append([name, *cells, str(at[0]["seeds"])])
        lines += [
            f"## {len(chunks)} chunks; training has 5",
            "",
            *table(["chunk", *(str(k + 1) for k in shown), "n"], rows),
        ]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.law_drift", description=(__doc__ or "").splitlines()[0])
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
    folder = options.cache or (options.out / "cache" if options.smoke else CACHE)
    steps, samples, settings = ((1,), 16, SMOKE) if options.smoke else (STEPS, SAMPLES, FULL)
    some = jobs_of(tuple(dict.fromkeys(options.seeds)), steps, samples, settings, folder)
    if not options.smoke:
        kept.unpack(RESULTS / JOBS, folder)
    failed = [] if options.report else complete(some, 60 * options.minutes)
    records, out = summarise(some), options.out or RESULTS
    jobs.write(out / "law_drift.json", records)
    kept.pack(folder, KINDS, out / JOBS)
    (out / "law_drift.md").write_text(markdown(records))
    print(markdown(records))
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
