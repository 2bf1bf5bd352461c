"""The jobs of `law`: a student trained, a student judged at one number of steps; each a file, done once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from attrs import Factory, evolve, field, fields, frozen, has, validators
from flowmap_digits import measure
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve, real_clips
from flowmap_digits.videos import train_prompts
from torch import Tensor

from flowmap import Recipe, distill
from flowmap._types import Role
from flowmap.data import Data
from flowmap.evaluation import Samples
from flowmap.evaluation.curve import Bench
from flowmap.evaluation.distances import energy_distance, spread_of
from flowmap.evaluation.metrics import prompt_by_prompt
from flowmap.evaluation.records import Point
from flowmap.model import Kind
from flowmap.recipe import describe
from flowmap.training.loop import TrainingError
from flowmap.training.run import environment

from . import budget, jobs
from .law_rows import BATCH, CLIPS, COUNTS, GUIDANCE, NAMES, TEACHER, Row

GROUPS = 8
"""Of a seed's samples: the error of a mean over them is that of leaving one group out in turn."""
METRICS: Mapping[str, str] = {"energy_distance": "lower", "feature_distance": "lower", "variety": "one"}
Values = Mapping[str, float]
UNTOLD = {"name", "citations"}


@frozen
class Settings:
    """samples: judged, of each seed, sixteen prompts in turn. shorter: of every stage, for a trial of the code."""

    samples: int = field(default=512, validator=validators.ge(48))
    steps: tuple[int, ...] = field(default=COUNTS, validator=validators.min_len(1))
    batch: int = field(default=BATCH, validator=validators.ge(1))
    clips: int = field(default=CLIPS, validator=validators.ge(1))
    shorter: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(1.0)])
    rounds: int = field(default=10, validator=validators.ge(1))
    device: str = "cpu"


FULL = Settings()
SMOKE = Settings(samples=48, steps=(1, 4), batch=4, clips=16, shorter=0.002, rounds=1)

# ---------------------------------------------------------------------------- what a student costs


def costs(row: Row, settings: Settings, folder: Path) -> list[float]:
    """Calls of the student on one sample in an iteration of each stage; counted once, on tiny networks."""
    full = row.recipe()
    path = folder / "calls" / f"{row.name}_{jobs.key(told(full), settings.rounds)[:12]}.json"
    if not path.is_file():
        tiny = evolve(full, backbone=budget.small(full.backbone), teacher=budget.small(TEACHER))
        jobs.write(path, [cost["student"].total for cost in budget.count(tiny, 5, settings.rounds)])
    found: list[float] = json.loads(path.read_text())
    return found


def recipe(row: Row, seed: int, settings: Settings, folder: Path) -> Recipe:
    """As long as has AnyFlow's calls of the student, unless the row has its own length."""
    full = row.recipe(seed, settings.clips)
    scale = 1.0 if row.own else calls(NAMES["anyflow"], settings, folder, 1.0) / calls(row, settings, folder, 1.0)
    scale *= settings.shorter * row.longer
    stages = tuple(budget.scaled(evolve(stage, batch=BATCH), settings.batch, scale, row.rate) for stage in full.stages)
    return evolve(full, stages=stages, evaluation=None)


def calls(row: Row, settings: Settings, folder: Path, scale: float | None = None) -> float:
    """Of the student on one sample, in all of its training."""
    stages = row.recipe().stages if scale is not None else recipe(row, 0, settings, folder).stages
    return BATCH * sum(s.steps * n for s, n in zip(stages, costs(row, settings, folder), strict=True))


# ---------------------------------------------------------------------------- training


def told(found: Recipe) -> str:
    """What a training depends on, wherever this checkout lies and whatever fields are added later."""
    parts = ("backbone", "teacher", "critic", "stages", "data", "seed", "dtype")
    said = {part: _told(getattr(found, part)) for part in parts}
    return json.dumps(said, sort_keys=True).replace(str(jobs.ROOT), "")


def _told(value: Any) -> Any:
    """As `describe` tells it, without what changes nothing and the fields that are as they are by default."""
    if isinstance(value, Mapping):
        return {str(key): _told(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(one) for one in value]
    if not has(type(value)):
        return describe(value)
    own = {f.name: getattr(value, f.name) for f in fields(type(value)) if f.init and f.name not in UNTOLD}
    usual = {f.name: _usual(f.default, value) for f in fields(type(value))}
    said = {name: _told(one) for name, one in own.items() if one != usual[name]}
    kind, *weights = (describe(value).get(key) for key in ("type", "fingerprint"))
    return {"type": kind, **({"weights": weights} if any(weights) else {}), **said}


def _usual(default: Any, value: Any) -> Any:
    """Of a field of `value`."""
    if not isinstance(default, Factory):  # type: ignore[arg-type]
        return default
    return default.factory(value) if default.takes_self else default.factory()


def trained(found: Recipe, folder: Path, device: str) -> Path:
    """The run directory of a student; each stage is a run, which others that begin alike begin with."""
    out = folder / "students" / jobs.key(told(found), device)[:16]
    if (out / "facts.json").is_file():
        return out
    one, teacher = found, found.teacher
    if len(found.stages) > 1:
        before = trained(evolve(found, stages=found.stages[:-1]), folder, device)
        start = evolve(found.backbone, path=str(before / "student"))
        one = Recipe(start, found.stages[-1:], teacher=teacher, data=found.data, seed=found.seed + 1000, name="")
    begun, start_of = (out / "checkpoints").is_dir(), time.process_time()
    distill(one, data_of(found), out=out, device=device)
    seconds = None if begun else time.process_time() - start_of
    jobs.write(
        out / "facts.json", {"seconds": seconds, "iterations": one.stages[0].steps, "environment": environment()}
    )
    return out


def seconds_of(found: Recipe, folder: Path, device: str) -> float | None:
    """Of the processor, of all stages; None where one was resumed."""
    outs = [trained(evolve(found, stages=found.stages[:n]), folder, device) for n in range(1, len(found.stages) + 1)]
    spent = [json.loads((out / "facts.json").read_text())["seconds"] for out in outs]
    return None if None in spent else sum(spent)


def data_of(found: Recipe) -> Data:
    assert isinstance(found.data, MovingDigits)
    return _data(found.data)


@cache
def _data(source: MovingDigits) -> Data:
    return source.load(TEACHER, None, device=torch.device("cpu"))


# ---------------------------------------------------------------------------- judging


@frozen
class Judging:
    """A row, or None: the teacher; at so many steps under a sampler. steps 0: real clips, the floor.

    tuning: on prompts of the training set, for the choice of a rate.
    """

    row: Row | None
    seed: int
    sampler: Kind
    steps: int
    settings: Settings
    folder: Path
    tuning: bool = False

    @property
    def name(self) -> str:
        return self.row.name if self.row is not None else "teacher" if self.steps else "real"

    def __str__(self) -> str:
        return f"{self.name:20} {self.sampler:11} {self.steps:3} steps  seed {self.seed}"

    @property
    def recipe(self) -> Recipe | None:
        return None if self.row is None else recipe(self.row, self.seed, self.settings, self.folder)

    @property
    def path(self) -> Path:
        said = None if self.recipe is None else told(self.recipe)
        key = jobs.key(said, self.settings.samples, self.settings.device, GROUPS, [*METRICS])[:12]
        kind = "trials" if self.tuning else "records"
        return self.folder / kind / f"{self.name}_{self.sampler}_{self.steps}_seed{self.seed}_{key}.json"

    @property
    def found(self) -> dict[str, Any] | None:
        return json.loads(self.path.read_text()) if self.path.is_file() else None

    def perform(self) -> dict[str, Any]:
        """Train what is not trained, judge it, write the result."""
        made: dict[str, Any] = {"method": self.name, "sampler": self.sampler, "steps": self.steps, "seed": self.seed}
        made |= {"samples": self.settings.samples, "code": jobs.code(), "state": "finished"}
        try:
            made |= self._judged()
        except TrainingError as error:
            made |= {"state": "diverged", "reason": str(error), "values": {}, "without": []}
        jobs.write(self.path, made)
        return made

    def _judged(self) -> dict[str, Any]:
        bench = bench_of(self.settings, self.tuning)
        if self.name == "real":
            return measured(bench.real(real_clips, self.seed))
        if self.recipe is None:
            return measured(bench.made(Point("teacher", self.sampler, self.steps, self.steps), self.seed))
        out = trained(self.recipe, self.folder, self.settings.device)
        device = torch.device(self.settings.device)
        nets = {"student": self.recipe.backbone.load(out / "student", device=device, dtype=torch.float32)}
        made = evolve(bench, nets=nets).made(Point("student", self.sampler, self.steps, self.steps), self.seed)
        return {"seconds": seconds_of(self.recipe, self.folder, self.settings.device), **measured(made)}


@cache
def bench_of(settings: Settings, tuning: bool = False) -> Bench:
    """Prompts, noise and real clips, the same for every row; with the teacher."""
    own = curve(
        guidance=GUIDANCE, steps=settings.steps, seeds=(0,), samples=settings.samples, real_samples=settings.samples
    )
    if tuning:
        own = evolve(own, prompts=tuple(prompt.text for prompt in train_prompts()[::9]))
    roles = frozenset[Role]({"student", "teacher"})
    nets = TEACHER.build(roles, device=torch.device(settings.device), dtype=torch.float32)
    return Bench.of(own, nets, TEACHER)


def measured(made: Samples) -> dict[str, Any]:
    """Each metric, and of the same samples without each of the groups in turn."""
    features = measure.features(made.videos)
    prompts = len(set(made.prompts))
    groups = min(GROUPS, len(made.prompts) // prompts)
    place = torch.arange(len(made.prompts)) // prompts % groups  # of a sample among its prompt's
    kept = [place != group for group in range(groups)]
    whole = _values(made, features, torch.ones_like(place, dtype=torch.bool))
    return {"values": whole, "without": [_values(made, features, keep) for keep in kept]}


def _values(made: Samples, features: Tensor, keep: Tensor) -> Values:
    assert made.real is not None
    prompts = [text for text, wanted in zip(made.prompts, keep.tolist(), strict=True) if wanted]
    some = Samples(made.videos[:0], made.latents[keep], prompts, None, made.real)

    def mean(a: Tensor, b: Tensor, of: Callable[[Tensor, Tensor], float]) -> float:
        return prompt_by_prompt(a, b, some, of)

    mine, theirs = some.latents, made.real.latents
    spread = mean(mine, theirs, lambda x, y: spread_of(x)) / mean(mine, theirs, lambda x, y: spread_of(y))
    near = mean(features[keep], real_features(made.real), energy_distance)
    return {"energy_distance": mean(mine, theirs, energy_distance), "feature_distance": near, "variety": spread}


@cache
def real_features(real: Samples) -> Tensor:
    return measure.features(real.videos)


def judged(name: str, folder: Path) -> list[int]:
    """The seeds of which there is anything of a row."""
    found = (path.stem.split("_seed")[1] for path in (folder / "records").glob(f"{name}_*_seed*.json"))
    return sorted({int(rest.split("_")[0]) for rest in found})


def jobs_of(rows: tuple[Row, ...], seeds: tuple[int, ...], settings: Settings, folder: Path) -> Iterator[Judging]:
    """One seed of every row before the next: real clips, the teacher, every method's own sampler, the other one."""
    for seed in seeds:
        yield from (Judging(None, seed, "euler", n, settings, folder) for n in (0, *settings.steps))
        for other in (False, True):
            for row in rows:
                for which in row.samplers[1:] if other else row.samplers[:1]:
                    yield from (Judging(row, seed, which, n, settings, folder) for n in settings.steps)
