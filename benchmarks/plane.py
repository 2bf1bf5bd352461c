"""The jobs of `any_step`: one start for all, trials of learning rates, runs."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from attrs import evolve, field, frozen, validators

from flowmap import AdamW, Ema, Recipe, Rng, Stage, TensorData, distill
from flowmap.evaluation.card import sampler
from flowmap.method import Method, Sampler, Update
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.recipe import digest
from flowmap.times import Diagonal
from flowmap.training.loop import TrainingError
from flowmap.training.run import environment

from . import budget, jobs, methods2d
from .any_step_report import STUDY
from .curves import FEW, MANY
from .jobs import code, key
from .judge2d import Judge
from .methods2d import ENTRIES, Entry
from .mixture2d import ExactVelocity, Mixture2D, latents

TRIAL = 1000
"""The seed of the sweep, of its training and of its noise: of no result."""
count = validators.ge(1)


@frozen
class Settings:
    """budget: calls of the student on one sample, in training. sweep: its share that a trial of a learning rate has.

    factors: of a method's learning rates, all of them. more: where the best factor is the least or the largest, so many
    times another beyond it is tried. seeds: of training; the noise that a student is judged on has the same seed.
    start: iterations for which the network that all begin as learns the teacher's velocity, in batches twice the size.
    data: samples to train on. samples: judged, of each seed. rounds: of a method's updates, to count its calls on.
    """

    entries: tuple[Entry, ...] = field(default=ENTRIES, validator=validators.min_len(1))
    seeds: tuple[int, ...] = field(default=(0, 1, 2), validator=validators.min_len(1))
    budget: int = field(default=8_000_000, validator=count)
    sweep: float = field(default=1 / 4, validator=[validators.gt(0.0), validators.le(1.0)])
    factors: tuple[float, ...] = field(default=(1 / 9, 1 / 3, 1.0, 3.0), validator=validators.min_len(2))
    more: int = field(default=2, validator=validators.ge(0))
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    samples: int = field(default=48_000, validator=[count, lambda i, a, n: _divides(n)])
    batch: int = field(default=512, validator=count)
    start: int = field(default=8000, validator=count)
    data: int = field(default=1 << 18, validator=count)
    rounds: int = field(default=24, validator=count)
    backbone: Mixture2D = Mixture2D()

    def __attrs_post_init__(self) -> None:
        if FEW not in self.steps or len([n for n in self.steps if FEW <= n <= MANY]) < 2:
            raise ValueError(f"Settings.steps = {self.steps}: must have {FEW}, and one more up to {MANY}, for a slope")


def _divides(samples: int) -> None:
    if samples % 12:
        raise ValueError(f"Settings.samples = {samples}: must be a multiple of 12, the sum of the modes' weights")


SMOKE = Settings(
    seeds=(0,),
    budget=2000,
    sweep=0.5,
    factors=(1.0, 3.0),
    more=0,
    steps=(1, 4, 8),
    samples=600,
    batch=64,
    start=20,
    data=1024,
    rounds=1,
    backbone=Mixture2D().tiny(),
)

# ---------------------------------------------------------------------------- training


@cache
def data(backbone: Mixture2D, samples: int, seed: int) -> TensorData:
    """Of a training seed; once a process."""
    return TensorData(latents(backbone.mixture.draw(samples, Rng.seeded(seed, 1))))


def recipe(entry: Entry, settings: Settings, backbone: Mixture2D, scale: float, factor: float, seed: int) -> Recipe:
    """The entry's training, `scale` times as long as the recipe's, with `factor` times its learning rates."""
    own = methods2d.recipe(backbone, data(evolve(backbone, start=None), settings.data, seed), seed)
    stages = tuple(budget.scaled(stage, settings.batch, scale, factor) for stage in own.stages)
    return entry.trained(evolve(own, stages=stages))


def beginning(settings: Settings) -> Recipe:
    """Of the network that students and critics begin as: it learns the teacher's velocity, and no second time."""
    matching = FlowMapMatching(Diagonal(), velocity="teacher")
    stage = Stage(
        Method("start", (Update("student", ((1.0, matching),)),)),
        settings.start,
        2 * settings.batch,
        optimizer=AdamW(2e-3, (0.9, 0.99), warmup=settings.start // 40, schedule="cosine", floor=0.01),
        ema=Ema(0.999 if settings.start > 5000 else 0.9, start=settings.start // 2),
    )
    return Recipe(settings.backbone, (stage,), data=data(settings.backbone, settings.data, TRIAL), seed=TRIAL)


# ---------------------------------------------------------------------------- a job


@frozen
class Job:
    """A method, or None: the teacher's own ODE, that of the start, and fresh data."""

    entry: Entry | None
    kind: Literal["sweep", "final"]
    seed: int
    factor: float
    settings: Settings
    folder: Path
    backbone: Mixture2D
    scale: float

    def __str__(self) -> str:
        return f"{self.name:21} {self.kind:5}  seed {self.seed:<4}  lr × {self.factor:.3g}"

    @property
    def name(self) -> str:
        return "teacher" if self.entry is None else self.entry.name

    @property
    def recipe(self) -> Recipe:
        assert self.entry is not None
        return recipe(self.entry, self.settings, self.backbone, self.scale, self.factor, self.seed)

    @property
    def steps(self) -> tuple[int, ...]:
        return self.settings.steps if self.kind == "final" else (FEW,)

    @property
    def path(self) -> Path:
        return _path(self)

    @property
    def found(self) -> dict[str, Any] | None:
        return json.loads(self.path.read_text()) if self.path.is_file() else None

    def perform(self) -> None:
        """Train, judge, write the result."""
        told = {"method": self.name, "kind": self.kind, "seed": self.seed, "factor": self.factor, "code": code()}
        judge = Judge(self.backbone.mixture, self.settings.samples, self.seed, self.folder, paired=self.kind == "final")
        if self.entry is None:
            exact, begun = (
                ExactVelocity(self.backbone.mixture),
                self.backbone.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32),
            )
            values = [{"method": "teacher", **v} for v in judge(exact, "euler", self.steps)]
            values += [{"method": "start", **v} for v in judge(begun["student"], "euler", self.steps)]
            values += [{"method": "fresh", **v} for v in judge.fresh()]
            jobs.write(self.path, {**told, "state": "finished", "values": values})
            return
        begin = time.process_time()
        try:
            student = distill(self.recipe, device="cpu")
        except TrainingError as error:
            jobs.write(self.path, {**told, "state": "diverged", "reason": str(error), "values": []})
            return
        facts = {
            "seconds": time.process_time() - begin,
            "iterations": [stage.steps for stage in self.recipe.stages],
            "environment": environment(),
        }
        own = sampler(self.recipe)
        both = self.entry.renoised and self.kind == "final"
        samplers: tuple[Sampler, ...] = (own, "consistency") if both else (own,)
        values = [{"method": self.name, **v} for which in samplers for v in judge(student, which, self.steps)]
        jobs.write(self.path, {**told, **facts, "state": "finished", "values": values})

    def brief(self) -> str:
        found = self.found
        if found is None or found["state"] != "finished":
            return "diverged"
        values = [v["value"] for v in found["values"] if v["metric"] == STUDY.primary and v["method"] == self.name]
        return "sliced W2 " + " ".join("–" if v is None else f"{v:.3f}" for v in values)


@cache
def _path(job: Job) -> Path:
    """By all that the result depends on; once a process, for it reads every sample and weight."""
    trained = job.backbone.fingerprint() if job.entry is None else digest(job.recipe)
    renoised = job.entry is not None and job.entry.renoised
    told = key(trained, job.steps, job.settings.samples, renoised)
    return job.folder / job.kind / f"{job.name}_seed{job.seed}_{told[:12]}.json"
