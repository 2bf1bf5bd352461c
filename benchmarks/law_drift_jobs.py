"""The jobs of `law_drift`: a causal student, or real clips, measured chunk by chunk; each a file, done once."""

from __future__ import annotations

import json
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

from . import jobs
from .drift_run import edges
from .law_jobs import GROUPS, Settings, recipe, told, trained
from .law_rows import CAUSAL, GUIDANCE, MODELS, NAMES

METRICS: Mapping[str, drift.PerChunk] = {
    "absolute_drift": drift.absolute_drift,
    "glyph_distance": drift.glyph_distance,
}
REAL, REAL_SEED = "real clips through the VAE", 20250604
LONGER = (1, 3)


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
    own = curve(guidance=GUIDANCE, steps=(4, 32), seeds=(0,), samples=samples, real_samples=2)
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
