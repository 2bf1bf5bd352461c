"""The jobs of `any_step_video`: what is compared, at which scale, trained and judged."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from attrs import evolve, field, frozen, validators
from flowmap_consistency import dmd2, self_forcing
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import METRICS as MEASURED
from flowmap_digits.evaluation import frechet_distance
from safetensors import safe_open
from safetensors.torch import save_file

from flowmap import FlowMap, FlowMapSpec, Recipe, Stage, distill
from flowmap._types import Role
from flowmap.cli import recipes
from flowmap.data import Data
from flowmap.evaluation import QualityCurve, Samples
from flowmap.evaluation.card import sampler
from flowmap.evaluation.curve import Bench
from flowmap.evaluation.records import Point
from flowmap.method import Sampler
from flowmap.plugins import trained_by
from flowmap.recipe import describe, digest
from flowmap.training.loop import TrainingError
from flowmap.training.ranks.networks import build
from flowmap.training.run import environment

from . import any_step_video_report as report
from . import budget, jobs
from .curves import FEW, number

METRICS = {m.name: m for m in (frechet_distance, *MEASURED) if m.name in report.STUDY.metrics}
BUDGETS = {"tiny": 1500, "small": 8000, "full": 32_000}
TRIAL = 1000
"""The seed of the sweep, of its training and of its noise: of no result."""

# ---------------------------------------------------------------------------- what is compared


@frozen
class Entry:
    """A method on the backbone and at the scale of a recipe.

    method: of `flowmap_stages`, or what makes the stages; None is the recipe's own. renoised: judge the same weights
    under the consistency sampler too.
    """

    name: str
    title: str
    recipe: str = "tiny_wan"
    method: str | Callable[[Recipe], tuple[Stage, ...]] | None = None
    renoised: bool = False


ENTRIES = (
    Entry("anyflow", "AnyFlow", renoised=True),
    Entry("anyflow_causal", "AnyFlow, causal", "tiny_far", renoised=True),
    Entry("consistency", "CD", method="consistency"),
    Entry("rcm", "rCM", method="rcm"),
    Entry("self_forcing", "Self-Forcing, causal", "tiny_far", "self_forcing"),
    Entry("self_forcing_32", "Self-Forcing, causal, 32 times", "tiny_far", partial(self_forcing.stages, number=32)),
    Entry("dmd2", "DMD2", method="dmd2"),
    Entry("dmd2_32", "DMD2, 32 times", method=partial(dmd2.stages, number=32)),
    Entry("meanflow", "MeanFlow", method="meanflow"),
    Entry("shortcut", "Shortcut", method="shortcut"),
    Entry("lsd", "LSD", method="lsd"),
)
NAMES = {entry.name: entry for entry in ENTRIES}


@frozen
class Settings:
    """budget: calls of the student on one sample, in training. sweep: its share that a trial of a learning rate has.

    factors: of a method's learning rates, all of them. more: where the best factor is the least or the largest, so many
    times another beyond it is tried. seeds: of training; the noise that a student is judged on has the same seed.
    samples: judged, of each seed. rounds: of a method's updates, that its calls are counted on. device: of training and
    sampling; another has other random numbers.
    """

    entries: tuple[Entry, ...] = field(default=ENTRIES, validator=validators.min_len(1))
    seeds: tuple[int, ...] = field(default=(0, 1, 2), validator=validators.min_len(1))
    budget: int = field(default=BUDGETS["full"], validator=validators.ge(1))
    sweep: float = field(default=1 / 3, validator=[validators.gt(0.0), validators.le(1.0)])
    factors: tuple[float, ...] = field(default=(1 / 3, 1.0, 3.0), validator=validators.min_len(2))
    more: int = field(default=2, validator=validators.ge(0))
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    samples: int = field(default=256, validator=validators.ge(2))
    batch: int = field(default=32, validator=validators.ge(1))
    clips: int = field(default=4096, validator=validators.ge(1))
    rounds: int = field(default=24, validator=validators.ge(1))
    device: str = "cpu"

    def __attrs_post_init__(self) -> None:
        if FEW not in self.steps or len([n for n in self.steps if n >= FEW]) < 2:
            raise ValueError(f"Settings.steps = {self.steps}: must have {FEW}, and one above, for a slope")


SMOKE = Settings(
    seeds=(0,),
    budget=40,
    sweep=0.5,
    factors=(1.0, 3.0),
    more=0,
    steps=(1, 4, 8),
    samples=4,
    batch=4,
    clips=32,
    rounds=1,
)


def recipe(entry: Entry, settings: Settings, scale: float, factor: float = 1.0, seed: int = 0) -> Recipe:
    """The entry's training, `scale` times as long as its recipe, with `factor` times its learning rates."""
    own = recipes.load(entry.recipe)
    stages = tuple(budget.scaled(stage, settings.batch, scale, factor) for stage in own.stages)
    assert isinstance(own.data, MovingDigits)
    found = evolve(own, stages=stages, data=evolve(own.data, count=settings.clips), seed=seed)
    if entry.method is None:
        return found
    if isinstance(entry.method, str):
        return trained_by(found, entry.method)
    return evolve(found, stages=entry.method(found), name=f"{found.name}:{entry.name}")


# ---------------------------------------------------------------------------- a job


@frozen
class Job:
    """A method, or None: the teacher itself, and real clips; with all that the result depends on."""

    entry: Entry | None
    kind: Literal["sweep", "final"]
    seed: int
    factor: float
    settings: Settings
    folder: Path
    scale: float

    @property
    def name(self) -> str:
        return "teacher" if self.entry is None else self.entry.name

    def __str__(self) -> str:
        return f"{self.name:15} {self.kind:5}  seed {self.seed:<4}  lr × {self.factor:.3g}"

    @property
    def recipe(self) -> Recipe:
        entry = self.entry or Entry("teacher", "teacher")
        return recipe(entry, self.settings, self.scale, self.factor, self.seed)

    @property
    def curve(self) -> QualityCurve:
        own = self.recipe.evaluation
        assert isinstance(own, QualityCurve)
        steps = self.settings.steps if self.kind == "final" else (FEW,)
        return evolve(own, seeds=(self.seed,), samples=self.settings.samples, steps=steps)

    @property
    def path(self) -> Path:
        trained = None if self.entry is None else digest(self.recipe)
        judged = describe(evolve(self.curve, metrics=tuple(METRICS.values())))
        key = jobs.key(trained, judged, self.entry is not None and self.entry.renoised)
        return self.folder / self.kind / f"{self.name}_seed{self.seed}_{key[:12]}.json"

    @property
    def found(self) -> dict[str, Any] | None:
        return json.loads(self.path.read_text()) if self.path.is_file() else None

    def perform(self) -> None:
        """Train what is not trained, judge it, write the result."""
        told = {"method": self.name, "kind": self.kind, "seed": self.seed, "factor": self.factor, "code": jobs.code()}
        if self.entry is None:
            jobs.write(self.path, {**told, "state": "finished", "values": list(reference(self))})
            return
        try:
            student, facts = trained(self)
        except TrainingError as error:
            jobs.write(self.path, {**told, "state": "diverged", "reason": str(error), "values": []})
            return
        values = list(judged(self, self.entry, student))
        jobs.write(self.path, {**told, **facts, "state": "finished", "values": values})

    def brief(self) -> str:
        if (found := self.found) is None or found["state"] != "finished":
            return "diverged"
        values = [v for v in found["values"] if v["metric"] == report.STUDY.primary and v["steps"]]
        return report.STUDY.primary.replace("_", " ") + " " + " ".join(number(v["value"]) for v in values)


def trained(job: Job) -> tuple[FlowMap, dict[str, Any]]:
    """The student, and how long it took; from the cache where it is there."""
    found = job.recipe
    path = job.folder / "students" / f"{job.name}_{digest(found)[:16]}.safetensors"
    if path.is_file():
        return _loaded(found.backbone, path, job.settings.device)
    data = clips(found)
    start = time.process_time()
    student = distill(found, data, device=job.settings.device)
    facts = {
        "seconds": time.process_time() - start,
        "iterations": [stage.steps for stage in found.stages],
        "environment": environment(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.partial")
    tensors = {name: p.detach().cpu().contiguous().clone() for name, p in student.trained().items()}
    save_file(tensors, beside, {"facts": json.dumps(facts)})
    beside.replace(path)
    return student, facts


def _loaded(backbone: FlowMapSpec, path: Path, device: str) -> tuple[FlowMap, dict[str, Any]]:
    nets = backbone.build(frozenset[Role]({"student"}), device=torch.device(device), dtype=torch.float32)
    with safe_open(path, "pt") as file, torch.no_grad():
        facts = json.loads(file.metadata()["facts"])
        for name, p in nets["student"].trained().items():
            p.copy_(file.get_tensor(name))
    return nets["student"], facts


def clips(found: Recipe) -> Data:
    assert isinstance(found.data, MovingDigits)
    return _clips(found.data)


@cache
def _clips(source: MovingDigits) -> Data:
    """The clips and their prompts, through the codec that both backbones share; once a process."""
    return source.load(recipes.load("tiny_wan").backbone, None, device=torch.device("cpu"))


def judged(job: Job, entry: Entry, student: FlowMap) -> Iterator[dict[str, Any]]:
    """With its own sampler, and with another if that is asked for."""
    own = sampler(job.recipe)
    bench = Bench.of(job.curve, {"student": student}, job.recipe.backbone)
    both = entry.renoised and job.kind == "final"
    samplers: tuple[Sampler, ...] = (own, "consistency") if both else (own,)
    for which in samplers:
        for n in job.curve.steps:
            yield from measured(entry.name, which, n, bench.made(Point("student", which, n, n), job.seed))


def reference(job: Job) -> Iterator[dict[str, Any]]:
    """The teacher's own ODE, and real clips."""
    device = torch.device(job.settings.device)
    nets = build(evolve(job.recipe, evaluation=None), device, torch.float32, judged=True)
    bench = Bench.of(job.curve, nets, job.recipe.backbone)
    calls = 1 if job.curve.guidance == 1.0 else 2
    for n in job.curve.steps:
        yield from measured("teacher", "euler", n, bench.made(Point("teacher", "euler", n, calls * n), job.seed))
    if job.curve.real is not None:
        yield from measured("real", "none", 0, bench.real(job.curve.real, job.seed))


def measured(method: str, which: str, steps: int, made: Samples) -> Iterator[dict[str, Any]]:
    """One value a metric; None where it is not a number, as of samples that are none."""
    finite = bool(made.latents.isfinite().all())
    for name, metric in METRICS.items():
        value = metric.measure(made) if finite else math.nan
        found = value if math.isfinite(value) else None
        yield {"method": method, "sampler": which, "steps": steps, "metric": name, "value": found}
