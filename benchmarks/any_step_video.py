"""Quality against the number of steps, on video: nine methods from one teacher, with the same calls of the student.

    python -m benchmarks.any_step_video --plan          # what it would train, and for how long
    python -m benchmarks.any_step_video --jobs 2        # writes benchmarks/results/any_step_video.{json,png,md}
    python -m benchmarks.any_step_video --smoke --out DIR       # the same path through the code; means nothing

AnyFlow, arXiv:2605.13724, figure 1, at the scale of recipes/tiny_wan.py and tiny_far.py: moving digits, networks of
1.2 M parameters. Every method trains as its `stages` say for that recipe, all stages shortened by one factor, so that
the student is called as often as everybody else's: `budget` times on one sample. First every method tries the same
factors of its learning rates, on a share of the budget; the best at 4 steps is taken.

What is finished is kept, a file a result, under --cache: a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from attrs import asdict, evolve, field, frozen, validators
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import METRICS as MEASURED
from flowmap_far import Far
from safetensors import safe_open
from safetensors.torch import save_file

from flowmap import AdamW, Ema, FlowMap, FlowMapSpec, Recipe, Stage, TensorData, distill
from flowmap._types import Cache, Cond, Latent, Rng, Role, Time
from flowmap.cli import recipes
from flowmap.data import Data
from flowmap.distill import build
from flowmap.evaluation import QualityCurve, Samples
from flowmap.evaluation.card import sampler
from flowmap.evaluation.curve import Bench
from flowmap.evaluation.records import Point
from flowmap.method import Method, Sampler
from flowmap.objectives import equipped
from flowmap.plugins import trained_by
from flowmap.recipe import describe, digest
from flowmap.testing import CountingFlowMap
from flowmap.training.loop import Trainer, TrainingError
from flowmap.training.run import environment, write_text

from . import any_step_video_report as report

ROOT = Path(__file__).parents[1]
RESULTS, CACHE = ROOT / "benchmarks" / "results", ROOT / "runs" / "any_step_video"
METRICS = {m.name: m for m in MEASURED if m.name in report.METRICS}
BUDGETS = {"tiny": 1500, "small": 6000, "full": 17_000}
TRIAL = 1000
"""The seed of the sweep, of its training and of its noise: of no result."""

# ---------------------------------------------------------------------------- what is compared


@frozen
class Entry:
    """A method on the backbone and at the scale of a recipe; method: of `flowmap_stages`, None is the recipe's own.

    renoised: judge the same weights under the consistency sampler too.
    """

    name: str
    title: str
    recipe: str = "tiny_wan"
    method: str | None = None
    renoised: bool = False


ENTRIES = (
    Entry("anyflow", "AnyFlow", renoised=True),
    Entry("anyflow_causal", "AnyFlow, causal", "tiny_far", renoised=True),
    Entry("consistency", "CD", method="consistency"),
    Entry("rcm", "rCM", method="rcm"),
    Entry("self_forcing", "Self-Forcing, causal", "tiny_far", "self_forcing"),
    Entry("dmd2", "DMD2", method="dmd2"),
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
    samples: judged, of each seed. rounds: of a method's updates, that its calls are counted on.
    """

    entries: tuple[Entry, ...] = field(default=ENTRIES, validator=validators.min_len(1))
    seeds: tuple[int, ...] = field(default=(0, 1, 2), validator=validators.min_len(1))
    budget: int = field(default=BUDGETS["full"], validator=validators.ge(1))
    sweep: float = field(default=1 / 3, validator=[validators.gt(0.0), validators.le(1.0)])
    factors: tuple[float, ...] = field(default=(1 / 3, 1.0, 3.0), validator=validators.min_len(2))
    more: int = field(default=1, validator=validators.ge(0))
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    samples: int = field(default=128, validator=validators.ge(2))
    batch: int = field(default=32, validator=validators.ge(1))
    clips: int = field(default=4096, validator=validators.ge(1))
    rounds: int = field(default=24, validator=validators.ge(1))

    def __attrs_post_init__(self) -> None:
        if report.FEW not in self.steps or len([n for n in self.steps if n >= report.FEW]) < 2:
            raise ValueError(f"Settings.steps = {self.steps}: must have {report.FEW}, and one above, for a slope")


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
    stages = tuple(scaled(stage, settings.batch, scale, factor) for stage in own.stages)
    assert isinstance(own.data, MovingDigits)
    found = evolve(own, stages=stages, data=evolve(own.data, count=settings.clips), seed=seed)
    return found if entry.method is None else trained_by(found, entry.method)


def scaled(stage: Stage, batch: int, scale: float, factor: float) -> Stage:
    """Warm-up and average shrink with the stage."""

    def fast(settings: AdamW) -> AdamW:
        return evolve(settings, lr=factor * settings.lr, warmup=round(scale * settings.warmup))

    given, ema = stage.optimizer, stage.ema
    optimizer = fast(given) if isinstance(given, AdamW) else {role: fast(one) for role, one in given.items()}
    if ema is not None:
        ema = Ema(max(0.0, 1 - (1 - ema.decay) / scale), start=round(scale * ema.start))
    return evolve(stage, steps=max(1, round(scale * stage.steps)), batch=batch, optimizer=optimizer, ema=ema)


# ---------------------------------------------------------------------------- what it costs

DRY = 8
"""Samples of a dry run: what shares of a batch come to, to the eighth."""


@frozen
class Calls:
    """Calls of a network on one sample: with a graph, without, and what a tangent that goes along adds."""

    graph: float = 0.0
    plain: float = 0.0
    tangent: float = 0.0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.graph + other.graph, self.plain + other.plain, self.tangent + other.tangent)

    def __mul__(self, n: float) -> Calls:
        return Calls(n * self.graph, n * self.plain, n * self.tangent)

    @property
    def total(self) -> float:
        """G and F count one, J and GJ two."""
        return self.graph + self.plain + self.tangent

    @property
    def seconds(self) -> float:
        """Roughly, on one thread: 8.4 ms forward and backward, 2.8 ms forward, 12 ms for a tangent beside."""
        return 8.4e-3 * self.graph + 2.8e-3 * self.plain + 12e-3 * self.tangent


Cost = Mapping[Role, Calls]
ROLES: tuple[Role, ...] = ("student", "teacher", "critic")


class Meter(FlowMap):
    """`u`, counting videos: frames that it is called on, clean history among them, by those of a video."""

    def __init__(self, u: FlowMap, frames: int) -> None:
        super().__init__()
        self.u, self.frames, self.calls = CountingFlowMap(u), frames, Calls()

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.u.reset()
        out: Latent = self.u(z, t, r, cond, cache)
        seen = z.shape[1] + (cond["history"].shape[1] if "history" in cond else 0)
        found = Calls(self.u.graph, self.u.plain, self.u.graph_j + self.u.plain_j)
        self.calls += found * (seen / self.frames)
        return out

    def chunks(self, frames: int) -> tuple[int, ...]:
        return self.u.chunks(frames)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        if len(self.u.chunks(self.frames)) > 1:
            self.calls += Calls(plain=len(x) * x.shape[1] / self.frames)
        return self.u.extend(cache, x, cond)

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        return self.u.teacher_forcing(x, cond, rng)

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return self.u.blocks

    def trained(self) -> Mapping[str, torch.nn.Parameter]:
        return self.u.trained()

    def thaw(self) -> None:
        self.u.thaw()


def small(backbone: FlowMapSpec) -> FlowMapSpec:
    """As `tiny`, with the same chunks."""
    tiny = backbone.tiny()
    if isinstance(tiny, Far) and isinstance(backbone, Far):
        return evolve(tiny, partition=backbone.partition, full=backbone.full)
    return tiny


def count(found: Recipe, frames: int, rounds: int) -> list[Cost]:
    """By stage, what an iteration costs a sample: the mean of `rounds` rounds of the updates of a tiny network."""
    device, tiny = torch.device("cpu"), evolve(found, backbone=small(found.backbone))
    z, cond = tiny.backbone.example(2 * DRY)
    data = TensorData(z[:, :frames], cond, {name: torch.zeros_like(value[:1]) for name, value in cond.items()})
    meters = {role: Meter(u, min(frames, z.shape[1])) for role, u in build(tiny, device, torch.float32).items()}
    nets = equipped(meters, tiny.equips, data.batch([0]))
    costs: list[Cost] = []
    for number, stage in enumerate(tiny.stages):
        still = {role: AdamW(1e-9) for role in stage.method.trains}
        trainer = Trainer(nets, evolve(stage, batch=DRY, micro=None, optimizer=still, ema=None), data, 0, number)
        iterations = rounds * period(stage.method)
        for meter in meters.values():
            meter.calls = Calls()
        for iteration in range(iterations):
            trainer.step(iteration)
        costs.append({role: meter.calls * (1 / DRY / iterations) for role, meter in meters.items()})
    return costs


def period(method: Method) -> int:
    """Iterations until the updates repeat."""
    return math.lcm(*(n for update in method.updates for n in (update.every, update.skip or 1)))


@frozen
class Plan:
    """How long an entry's stages are, in shares of the recipe's, and what one run costs."""

    entry: Entry
    scale: float
    iterations: tuple[int, ...]
    cost: Cost

    @property
    def seconds(self) -> float:
        """Roughly; calls on a chunk of a video cost more than its share."""
        slow = 1.45 if self.entry.recipe == "tiny_far" else 1.1
        return slow * sum(calls.seconds for calls in self.cost.values())


def plan(entry: Entry, settings: Settings, folder: Path, budget: float | None = None) -> Plan:
    """The stages that cost the budget."""
    full = recipe(entry, settings, 1.0)
    costs = _counted(entry, full, settings, folder)
    whole = sum(stage.steps * cost["student"].total for stage, cost in zip(full.stages, costs, strict=True))
    scale = (settings.budget if budget is None else budget) / (settings.batch * whole)
    stages = recipe(entry, settings, scale).stages
    cost: dict[Role, Calls] = {role: Calls() for role in ROLES}
    for stage, one in zip(stages, costs, strict=True):
        for role, calls in one.items():
            cost[role] += calls * (settings.batch * stage.steps)
    return Plan(entry, scale, tuple(stage.steps for stage in stages), cost)


def _counted(entry: Entry, full: Recipe, settings: Settings, folder: Path) -> list[Cost]:
    """The dry run, once."""
    path = folder / "calls" / f"{entry.name}_{_key(digest(full), settings.rounds)[:12]}.json"
    if not path.is_file():
        assert isinstance(full.evaluation, QualityCurve)
        costs = count(full, full.evaluation.shape[0], settings.rounds)
        _write(path, [{role: asdict(calls) for role, calls in cost.items()} for cost in costs])
    return [{role: Calls(**calls) for role, calls in cost.items()} for cost in json.loads(path.read_text())]


# ---------------------------------------------------------------------------- jobs


@frozen
class Job:
    """entry: None is the teacher itself, and real clips."""

    entry: Entry | None
    kind: Literal["sweep", "final"]
    seed: int
    factor: float = 1.0

    @property
    def name(self) -> str:
        return "teacher" if self.entry is None else self.entry.name

    def __str__(self) -> str:
        return f"{self.name:15} {self.kind:5}  seed {self.seed:<4}  lr × {self.factor:.3g}"


@frozen
class Bound:
    """A job with all that it depends on."""

    job: Job
    settings: Settings
    folder: Path
    scale: float

    @property
    def recipe(self) -> Recipe:
        entry = self.job.entry or Entry("teacher", "teacher")
        return recipe(entry, self.settings, self.scale, self.job.factor, self.job.seed)

    @property
    def curve(self) -> QualityCurve:
        own = self.recipe.evaluation
        assert isinstance(own, QualityCurve)
        steps = self.settings.steps if self.job.kind == "final" else (report.FEW,)
        return evolve(own, seeds=(self.job.seed,), samples=self.settings.samples, steps=steps)

    @property
    def path(self) -> Path:
        trained = None if self.job.entry is None else digest(self.recipe)
        judged = describe(evolve(self.curve, metrics=tuple(METRICS.values())))
        key = _key(trained, judged, self.job.entry is not None and self.job.entry.renoised)
        return self.folder / self.job.kind / f"{self.job.name}_seed{self.job.seed}_{key[:12]}.json"

    @property
    def found(self) -> dict[str, Any] | None:
        """The result, where it is finished."""
        return json.loads(self.path.read_text()) if self.path.is_file() else None


def perform(bound: Bound) -> None:
    """Train what is not trained, judge it, write the result."""
    if bound.found is not None:
        return
    job = bound.job
    told = {"method": job.name, "kind": job.kind, "seed": job.seed, "factor": job.factor, "code": code()}
    if job.entry is None:
        _write(bound.path, {**told, "state": "finished", "values": list(reference(bound))})
        return
    try:
        student, facts = trained(bound)
    except TrainingError as error:
        _write(bound.path, {**told, "state": "diverged", "reason": str(error), "values": []})
        return
    values = list(judged(bound, student))
    _write(bound.path, {**told, **facts, "state": "finished", "values": values})


def trained(bound: Bound) -> tuple[FlowMap, dict[str, Any]]:
    """The student, and how long it took; from the cache where it is there."""
    found = bound.recipe
    path = bound.folder / "students" / f"{bound.job.name}_{digest(found)[:16]}.safetensors"
    if path.is_file():
        return _loaded(found.backbone, path)
    data = clips(found)
    start = time.process_time()
    student = distill(found, data, device="cpu")
    facts = {
        "seconds": time.process_time() - start,
        "iterations": [stage.steps for stage in found.stages],
        "environment": environment(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.partial")
    tensors = {name: p.detach().contiguous().clone() for name, p in student.trained().items()}
    save_file(tensors, beside, {"facts": json.dumps(facts)})
    beside.replace(path)
    return student, facts


def _loaded(backbone: FlowMapSpec, path: Path) -> tuple[FlowMap, dict[str, Any]]:
    nets = backbone.build(frozenset[Role]({"student"}), device=torch.device("cpu"), dtype=torch.float32)
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


def judged(bound: Bound, student: FlowMap) -> Iterator[dict[str, Any]]:
    """With its own sampler, and with another if that is asked for."""
    entry, own = bound.job.entry, sampler(bound.recipe)
    assert entry is not None
    bench = Bench.of(bound.curve, {"student": student}, bound.recipe.backbone)
    both = entry.renoised and bound.job.kind == "final"
    samplers: tuple[Sampler, ...] = (own, "consistency") if both else (own,)
    for which in samplers:
        for n in bound.curve.steps:
            yield from measured(entry.name, which, n, bench.made(Point("student", which, n, n), bound.job.seed))


def reference(bound: Bound) -> Iterator[dict[str, Any]]:
    """The teacher's own ODE, and real clips."""
    nets = build(evolve(bound.recipe, evaluation=None), torch.device("cpu"), torch.float32, judged=True)
    bench = Bench.of(bound.curve, nets, bound.recipe.backbone)
    calls = 1 if bound.curve.guidance == 1.0 else 2
    for n in bound.curve.steps:
        yield from measured("teacher", "euler", n, bench.made(Point("teacher", "euler", n, calls * n), bound.job.seed))
    if bound.curve.real is not None:
        yield from measured("real", "none", 0, bench.real(bound.curve.real, bound.job.seed))


def measured(method: str, which: str, steps: int, made: Samples) -> Iterator[dict[str, Any]]:
    """One value a metric; None where it is not a number, as of samples that are none."""
    finite = bool(made.latents.isfinite().all())
    for name, metric in METRICS.items():
        value = metric.measure(made) if finite else math.nan
        found = value if math.isfinite(value) else None
        yield {"method": method, "sampler": which, "steps": steps, "metric": name, "value": found}


@cache
def code() -> str:
    """Of the sources that a result depends on beside its recipe."""
    files = [*sorted((ROOT / "flowmap").rglob("*.py")), *sorted((ROOT / "plugins").rglob("*.py"))]
    told = hashlib.sha256()
    for file in files:
        if "cli" not in file.parts:
            told.update(file.read_bytes())
    return told.hexdigest()[:12]


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")


# ---------------------------------------------------------------------------- all of it


@frozen
class Benchmark:
    """The jobs of the settings, and what is there of them."""

    settings: Settings
    folder: Path
    plans: Mapping[str, Plan]

    @classmethod
    def of(cls, settings: Settings, folder: Path) -> Benchmark:
        return cls(settings, folder, {entry.name: plan(entry, settings, folder) for entry in settings.entries})

    def bind(self, job: Job) -> Bound:
        scale = 1.0 if job.entry is None else self.plans[job.entry.name].scale
        share = self.settings.sweep if job.kind == "sweep" else 1.0
        return Bound(job, self.settings, self.folder, scale * share)

    def references(self) -> list[Bound]:
        return [self.bind(Job(None, "final", seed)) for seed in self.settings.seeds]

    def trials(self, entry: Entry) -> list[Bound]:
        """As far as they can be known from those that are there."""
        factors = sorted(self.settings.factors)
        for _ in range(self.settings.more):
            best = self._best(entry, factors)
            if best == factors[0]:
                factors = [best * factors[0] / factors[1], *factors]
            elif best == factors[-1]:
                factors = [*factors, best * factors[-1] / factors[-2]]
        return [self._trial(entry, factor) for factor in factors]

    def picked(self, entry: Entry) -> float | None:
        """The factor that was best; None while trials are missing, or where all diverged."""
        return self._best(entry, [trial.job.factor for trial in self.trials(entry)])

    def _trial(self, entry: Entry, factor: float) -> Bound:
        return self.bind(Job(entry, "sweep", TRIAL, factor))

    def _best(self, entry: Entry, factors: Sequence[float]) -> float | None:
        found = [self._trial(entry, factor).found for factor in factors]
        scores = {factor: report.score(one) for factor, one in zip(factors, found, strict=True) if one is not None}
        best = min(scores, key=scores.__getitem__, default=None)
        return best if len(scores) == len(found) and best is not None and math.isfinite(scores[best]) else None

    def finals(self, entry: Entry) -> list[Bound]:
        factor = self.picked(entry)
        seeds = () if factor is None else self.settings.seeds
        return [self.bind(Job(entry, "final", seed, cast(float, factor))) for seed in seeds]

    def run(self, workers: int) -> list[str]:
        """Everything that is not there yet; what failed."""
        entries = self._long_first()
        with processes(workers) as attempts:
            failed = []
            for _ in range(1 + self.settings.more):
                trials = [trial for entry in entries for trial in self.trials(entry)]
                failed += execute([*trials, *self.references()], attempts)
            finals = [runs for entry in entries if (runs := self.finals(entry))]
            failed += execute([one for seed in zip(*finals, strict=True) for one in seed], attempts)
        return list(dict.fromkeys(failed))

    def _long_first(self) -> list[Entry]:
        return sorted(self.settings.entries, key=lambda entry: -self.plans[entry.name].seconds)

    def results(self) -> report.Results:
        """What is there."""
        entries = self.settings.entries
        return report.Results(
            settings={name: value for name, value in describe(self.settings).items() if name != "type"},
            lines=report.lines([(entry.name, entry.title, entry.renoised) for entry in entries]),
            plans={entry.name: _told(self.plans[entry.name]) for entry in entries},
            picked={entry.name: self.picked(entry) for entry in entries},
            trials=list(_found(trial for entry in entries for trial in self.trials(entry))),
            finals=list(_found([*self.references(), *(one for entry in entries for one in self.finals(entry))])),
        )


def _found(bounds: Iterable[Bound]) -> Iterator[dict[str, Any]]:
    return (found for found in (bound.found for bound in bounds) if found is not None)


def _told(one: Plan) -> dict[str, Any]:
    calls = {role: round(found.total) for role, found in one.cost.items()}
    return {"iterations": list(one.iterations), "scale": one.scale, "calls": calls, "estimated_seconds": one.seconds}


def execute(bounds: Sequence[Bound], attempts: Attempts) -> list[str]:
    """What failed, in words: the others go on."""
    todo = [bound for bound in bounds if bound.found is None]
    failed = []
    for done, (bound, seconds, error) in enumerate(attempts(todo), 1):
        print(f"[{done}/{len(todo)}]  {bound.job}  {seconds:5.0f} s  {error or _brief(bound.found)}", flush=True)
        failed += [f"{bound.job}: {error}"] if error else []
    return failed


Attempts: TypeAlias = Callable[[Sequence[Bound]], Iterable[tuple[Bound, float, str]]]


@contextmanager
def processes(number: int) -> Iterator[Attempts]:
    """Where jobs are done: in processes of one thread each, that keep what they have loaded; 0 is this one."""
    if not number:
        yield partial(map, _attempt)
        return
    with get_context("spawn").Pool(number, _alone) as pool:
        yield partial(pool.imap_unordered, _attempt)
        pool.close()
        pool.join()


def _alone() -> None:
    torch.set_num_threads(1)


def _attempt(bound: Bound) -> tuple[Bound, float, str]:
    start = time.monotonic()
    try:
        perform(bound)
    except Exception as error:
        return bound, time.monotonic() - start, f"{type(error).__name__}: {error}"
    return bound, time.monotonic() - start, ""


def _brief(found: Mapping[str, Any] | None) -> str:
    if found is None or found["state"] != "finished":
        return "diverged"
    values = [v for v in found["values"] if v["metric"] == report.PRIMARY and v["steps"]]
    return report.PRIMARY.replace("_", " ") + " " + " ".join(report.number(v["value"]) for v in values)


# ---------------------------------------------------------------------------- the command line


def describe_plan(bench: Benchmark, workers: int) -> str:
    """A row a method, and about how long it takes."""
    settings = bench.settings
    walk = 2.8e-3 * settings.samples * sum(settings.steps)
    rows = [f"{'':16}{'iterations':>14}{'student':>9}{'teacher':>9}{'critic':>9}{'a run':>9}"]
    whole = 2 * walk * len(settings.seeds)
    for name, one in bench.plans.items():
        calls = "".join(f"{one.cost[role].total:9.0f}" for role in ROLES)
        stages = " + ".join(map(str, one.iterations))
        rows.append(f"{name:16}{stages:>14}{calls}{one.seconds / 60:5.1f} min")
        judging = walk * (2 if one.entry.renoised else 1)
        whole += len(settings.seeds) * (one.seconds + judging) + len(settings.factors) * settings.sweep * one.seconds
    runs, trials = (len(settings.entries) * len(some) for some in (settings.seeds, settings.factors))
    beyond = settings.more * settings.sweep * sum(one.seconds for one in bench.plans.values())
    low, high = (seconds / 60 / max(1, workers) for seconds in (whole, whole + beyond))
    rows.append(
        f"{runs} runs, {trials} trials of {settings.sweep:.0%} of the calls and {settings.more} more at most for each "
        f"method, {settings.samples} samples judged a run: about {low:.0f} to {high:.0f} minutes on "
        f"{max(1, workers)} idle core(s)"
    )
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.any_step_video", description=(__doc__ or "").splitlines()[0]
    )
    known = ", ".join(f"{name} = {calls}" for name, calls in BUDGETS.items())
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), metavar="METHOD", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="of training and of noise [0 1 2]")
    parser.add_argument("--samples", type=int, help="judged, of each seed [128]")
    parser.add_argument("--budget", help=f"calls of the student: a number, or one of {known} [full]")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each; 0: in this one [2]")
    parser.add_argument("--cache", type=Path, help="where finished results are kept [runs/any_step_video]")
    parser.add_argument("--out", type=Path, help=f"a directory for the report [{RESULTS.name}/, but not of --smoke]")
    parser.add_argument("--plan", action="store_true", help="say what would be done")
    parser.add_argument("--report-only", action="store_true", help="report on what is there")
    parser.add_argument("--smoke", action="store_true", help="everything, minutely; the numbers mean nothing")
    options = parser.parse_args(argv)
    if options.smoke and options.out is None:
        parser.error("--smoke needs --out: its numbers must not take the place of the results")
    settings = _settings(options, parser)
    folder = options.cache or (options.out / "cache" if options.smoke else CACHE)
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: two progress bars on one line help nobody
    bench = Benchmark.of(settings, folder)
    print(describe_plan(bench, options.jobs), flush=True)
    if options.plan:
        return 0
    failed = [] if options.report_only else bench.run(options.jobs)
    out = options.out or (RESULTS if settings.budget == BUDGETS["full"] else folder / f"budget_{settings.budget}")
    found = report.summarise(bench.results())
    report.write(found, out)
    print(report.markdown(found))
    print(out / "any_step_video.md")
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
    return 1 if failed else 0


def _settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    said: dict[str, Any] = {}
    if options.methods:
        said["entries"] = tuple(entry for entry in ENTRIES if entry.name in options.methods)
    if options.seeds:
        said["seeds"] = tuple(dict.fromkeys(options.seeds))
    if options.samples is not None:
        said["samples"] = options.samples
    if options.budget is not None:
        if options.budget not in BUDGETS and not options.budget.isdecimal():
            parser.error(f"--budget {options.budget}: must be a number, or one of {', '.join(BUDGETS)}")
        said["budget"] = BUDGETS.get(options.budget) or int(options.budget)
    try:
        return evolve(SMOKE if options.smoke else Settings(), **said)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
