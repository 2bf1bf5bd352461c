"""Quality against the number of steps, on video: methods from one teacher, with the same calls of the student.

    python -m benchmarks.any_step_video --plan          # what it would train, and for how long
    python -m benchmarks.any_step_video --jobs 2        # writes benchmarks/results/any_step_video.{json,png,md}
    python -m benchmarks.any_step_video --jobs 16 --device cuda         # the same in minutes
    python -m benchmarks.any_step_video --smoke --out DIR       # the same path through the code; means nothing

AnyFlow, arXiv:2605.13724, figure 1, at the scale of recipes/tiny_wan.py and tiny_far.py: moving digits, networks of
1.2 M parameters. Every method trains as its `stages` say for that recipe, all stages shortened by one factor, so that
the student is called as often as everybody else's: `budget` times on one sample. First every method tries the same
factors of its learning rates, on a share of the budget; the best at 4 steps is taken.

What is finished is kept, a file a result, under --cache: a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from attrs import asdict, evolve, frozen

from flowmap import Recipe
from flowmap._types import Role
from flowmap.evaluation import QualityCurve
from flowmap.recipe import describe, digest

from . import any_step_video_report as report
from . import jobs
from .any_step_results import Results
from .budget import ROLES, Calls, Cost, count, small
from .jobs import ROOT
from .video_jobs import BUDGETS, ENTRIES, NAMES, SMOKE, TRIAL, Entry, Job, Settings, recipe

RESULTS, CACHE = ROOT / "benchmarks" / "results", ROOT / "runs" / "any_step_video"

# ---------------------------------------------------------------------------- what it costs


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
        return slow * sum(seconds(calls) for calls in self.cost.values())


def seconds(calls: Calls) -> float:
    """Roughly, on one thread: 8.4 ms forward and backward, 2.8 ms forward, 12 ms for a tangent beside."""
    return 8.4e-3 * calls.graph + 2.8e-3 * calls.plain + 12e-3 * calls.tangent


def plan(entry: Entry, settings: Settings, folder: Path, calls: float | None = None) -> Plan:
    """The stages that cost the budget."""
    full = recipe(entry, settings, 1.0)
    costs = _counted(entry, full, settings, folder)
    whole = sum(stage.steps * cost["student"].total for stage, cost in zip(full.stages, costs, strict=True))
    scale = (settings.budget if calls is None else calls) / (settings.batch * whole)
    stages = recipe(entry, settings, scale).stages
    cost: dict[Role, Calls] = {role: Calls() for role in ROLES}
    for stage, one in zip(stages, costs, strict=True):
        for role, found in one.items():
            cost[role] += found * (settings.batch * stage.steps)
    return Plan(entry, scale, tuple(stage.steps for stage in stages), cost)


def _counted(entry: Entry, full: Recipe, settings: Settings, folder: Path) -> list[Cost]:
    """The dry run, once."""
    path = folder / "calls" / f"{entry.name}_{jobs.key(digest(full), settings.rounds)[:12]}.json"
    if not path.is_file():
        assert isinstance(full.evaluation, QualityCurve)
        tiny = evolve(full, backbone=small(full.backbone))
        costs = count(tiny, full.evaluation.shape[0], settings.rounds)
        jobs.write(path, [{role: asdict(calls) for role, calls in cost.items()} for cost in costs])
    return [{role: Calls(**calls) for role, calls in cost.items()} for cost in json.loads(path.read_text())]


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

    def references(self) -> list[Job]:
        return [Job(None, "final", seed, 1.0, self.settings, self.folder, 1.0) for seed in self.settings.seeds]

    def trials(self, entry: Entry) -> list[Job]:
        """As far as they can be known from those that are there."""
        factors = jobs.tried(self.settings.factors, self.settings.more, partial(self._score, entry))
        return [self._trial(entry, factor) for factor in factors]

    def picked(self, entry: Entry) -> float | None:
        """The factor that was best; None while trials are missing, or where all diverged."""
        return jobs.least([trial.factor for trial in self.trials(entry)], partial(self._score, entry))

    def finals(self, entry: Entry) -> list[Job]:
        factor = self.picked(entry)
        if factor is None:
            return []
        return [self._job(entry, "final", seed, factor) for seed in self.settings.seeds]

    def ready(self) -> Iterator[Job]:
        """Trials, and the runs of the methods whose trials are there; the long ones first."""
        for entry in sorted(self.settings.entries, key=lambda entry: -self.plans[entry.name].seconds):
            yield from self.trials(entry)
            yield from self.finals(entry)
        yield from self.references()

    def run(self, workers: int) -> list[str]:
        """Everything that is not there yet; what failed."""
        return jobs.complete(self.ready, workers)

    def _job(self, entry: Entry, kind: Literal["sweep", "final"], seed: int, factor: float) -> Job:
        scale = self.plans[entry.name].scale * (self.settings.sweep if kind == "sweep" else 1.0)
        return Job(entry, kind, seed, factor, self.settings, self.folder, scale)

    def _trial(self, entry: Entry, factor: float) -> Job:
        return self._job(entry, "sweep", TRIAL, factor)

    def _score(self, entry: Entry, factor: float) -> float | None:
        found = self._trial(entry, factor).found
        return None if found is None else report.score(found)

    def results(self) -> Results:
        """What is there."""
        entries = self.settings.entries
        return Results(
            settings={name: value for name, value in describe(self.settings).items() if name != "type"},
            lines=report.lines([(entry.name, entry.title, entry.renoised) for entry in entries]),
            plans={entry.name: _told(self.plans[entry.name]) for entry in entries},
            picked={entry.name: self.picked(entry) for entry in entries},
            trials=_found(trial for entry in entries for trial in self.trials(entry)),
            finals=_found([*self.references(), *(one for entry in entries for one in self.finals(entry))]),
        )


def _found(some: Iterable[Job]) -> list[dict[str, Any]]:
    return [found for job in some if (found := job.found) is not None]


def _told(one: Plan) -> dict[str, Any]:
    calls = {role: round(found.total) for role, found in one.cost.items()}
    return {"iterations": list(one.iterations), "scale": one.scale, "calls": calls, "estimated_seconds": one.seconds}


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
    parser.add_argument("--samples", type=int, help="judged, of each seed [256]")
    parser.add_argument("--budget", help=f"calls of the student: a number, or one of {known} [full]")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: some processes share it well [cpu]")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each; 0: in this one [2]")
    parser.add_argument("--cache", type=Path, help="where finished results are kept [runs/any_step_video]")
    parser.add_argument("--out", type=Path, help=f"a directory for the report [{RESULTS.name}/, but not of --smoke]")
    parser.add_argument("--plan", action="store_true", help="say what would be done")
    parser.add_argument("--report-only", action="store_true", help="report on what is there")
    parser.add_argument("--render", type=Path, metavar="JSON", help="write tables and picture of such a file anew")
    parser.add_argument("--smoke", action="store_true", help="everything, minutely; the numbers mean nothing")
    options = parser.parse_args(argv)
    if options.render is not None:
        report.write(json.loads(options.render.read_text()), options.out or options.render.parent)
        return 0
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
    if options.device != "cpu":
        said["device"] = options.device
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
