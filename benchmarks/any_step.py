"""Quality against the number of steps, on a mixture of eight Gaussians in the plane: every method from one start.

    python -m benchmarks.any_step --plan            # what it would train
    python -m benchmarks.any_step --jobs 2          # writes benchmarks/results/any_step.{json,png,md}
    python -m benchmarks.any_step --smoke --out DIR     # the same path through the code; the numbers mean nothing

AnyFlow, arXiv:2605.13724, figure 1, at a scale where the teacher is exact. Students and critics begin as one network
that learned the teacher's velocity. Every method trains as its `stages` say for one recipe, all stages shortened by one
factor, so that the student is called as often as everybody else's: `budget` times on one sample. First every method
tries the same factors of its learning rates, on a share of the budget; the best at 4 steps is taken.

What is finished is kept, a file a result, under --cache: a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from attrs import asdict, evolve, frozen

from flowmap import distill
from flowmap.recipe import describe, digest

from . import any_step_report as report
from . import budget, jobs
from .any_step_results import Line, Results
from .jobs import key
from .methods2d import Entry
from .mixture2d import Mixture2D, Mlp
from .plane import SMOKE, TRIAL, Job, Settings, beginning, recipe

RESULTS = Path(__file__).parent / "results"
CACHE = Path(__file__).parents[1] / "runs" / "any_step"


@frozen
class Plan:
    """How long an entry's stages are, in shares of the recipe's, and what one run costs."""

    entry: Entry
    scale: float
    iterations: tuple[int, ...]
    cost: budget.Cost


def plan(entry: Entry, settings: Settings, folder: Path) -> Plan:
    """The stages that cost the budget."""
    backbone = settings.backbone.tiny()
    full = recipe(entry, evolve(settings, data=4 * settings.rounds), backbone, 1.0, 1.0, 0)
    path = folder / "calls" / f"{entry.name}_{key(digest(full), settings.rounds)[:12]}.json"
    if not path.is_file():
        costs = budget.count(full, 1, settings.rounds)
        jobs.write(path, [{role: asdict(calls) for role, calls in cost.items()} for cost in costs])
    costs = [{role: budget.Calls(**calls) for role, calls in cost.items()} for cost in json.loads(path.read_text())]
    whole = sum(stage.steps * cost["student"].total for stage, cost in zip(full.stages, costs, strict=True))
    scale = settings.budget / (settings.batch * whole)
    stages = recipe(entry, settings, backbone, scale, 1.0, 0).stages
    cost = {role: budget.Calls() for role in budget.ROLES}
    for stage, one in zip(stages, costs, strict=True):
        for role, calls in one.items():
            cost[role] += calls * (settings.batch * stage.steps)
    return Plan(entry, scale, tuple(stage.steps for stage in stages), cost)


@frozen
class Benchmark:
    """The jobs of the settings, and what is there of them."""

    settings: Settings
    folder: Path
    plans: Mapping[str, Plan]

    @classmethod
    def of(cls, settings: Settings, folder: Path) -> Benchmark:
        return cls(settings, folder, {entry.name: plan(entry, settings, folder) for entry in settings.entries})

    @property
    def backbone(self) -> Mixture2D:
        return evolve(self.settings.backbone, start=self.folder / "start" / digest(beginning(self.settings))[:12])

    @property
    def begun(self) -> bool:
        """Whether the start is there, without which there is nothing."""
        start = self.backbone.start
        return start is not None and start.is_dir()

    def begin(self) -> None:
        """Train the start and give it a second time to learn."""
        backbone = self.backbone
        assert backbone.start is not None
        network = cast(Mlp, distill(beginning(self.settings), device="cpu"))
        network.lift()
        beside = backbone.start.with_name(f"{backbone.start.name}.{os.getpid()}.partial")
        backbone.save(network, beside)
        beside.replace(backbone.start)

    def job(self, entry: Entry | None, kind: Literal["sweep", "final"], seed: int, factor: float = 1.0) -> Job:
        share = self.settings.sweep if kind == "sweep" else 1.0
        scale = 1.0 if entry is None else self.plans[entry.name].scale * share
        return Job(entry, kind, seed, factor, self.settings, self.folder, self.backbone, scale)

    def references(self) -> list[Job]:
        return [self.job(None, "final", seed) for seed in self.settings.seeds]

    def _score(self, entry: Entry, factor: float) -> float | None:
        found = self.job(entry, "sweep", TRIAL, factor).found
        return None if found is None else report.score(found)

    def factors(self, entry: Entry) -> list[float]:
        """Of the learning rates, as far as they can be known from the trials that are there."""
        return jobs.tried(self.settings.factors, self.settings.more, lambda factor: self._score(entry, factor))

    def trials(self, entry: Entry) -> list[Job]:
        return [self.job(entry, "sweep", TRIAL, factor) for factor in self.factors(entry)]

    def picked(self, entry: Entry) -> float | None:
        """The factor that was best; None while trials are missing, or where all diverged."""
        return jobs.least(self.factors(entry), lambda factor: self._score(entry, factor))

    def finals(self, entry: Entry) -> list[Job]:
        factor = self.picked(entry)
        return [] if factor is None else [self.job(entry, "final", seed, factor) for seed in self.settings.seeds]

    def run(self, workers: int, seconds: float = math.inf) -> list[str]:
        """Everything that is not there yet, and begun within so many seconds; what failed."""
        if not self.begun:
            self.begin()
        return jobs.complete(self.ready, workers, seconds)

    def ready(self) -> list[Job]:
        """What can be done, as far as it is known, and what is done already."""
        each = [[*self.trials(entry), *self.finals(entry)] for entry in self.settings.entries]
        return [*self.references(), *(job for some in each for job in some)]

    def results(self) -> Results:
        """What is there."""
        entries = self.settings.entries
        return Results(
            settings={
                name: value for name, value in describe(self.settings).items() if name not in ("type", "entries")
            },
            lines=lines(entries),
            plans={entry.name: _told(self.plans[entry.name]) for entry in entries},
            picked={entry.name: self.picked(entry) for entry in entries},
            trials=_found(trial for entry in entries for trial in self.trials(entry)),
            finals=_found([*self.references(), *(one for entry in entries for one in self.finals(entry))]),
        )


def lines(entries: Sequence[Entry]) -> tuple[Line, ...]:
    """The teacher and the start first."""
    found = [Line("teacher", "teacher", ""), Line("start", "the start", "")]
    for entry in entries:
        found.append(Line(entry.name, entry.title, entry.family))
        if entry.renoised:
            found.append(Line(entry.name, f"{entry.title}: the same weights re-noised", entry.family, other=True))
    return tuple(found)


def _found(some: Iterable[Job]) -> list[dict[str, Any]]:
    return [found for job in some if (found := job.found) is not None]


def _told(one: Plan) -> dict[str, Any]:
    calls = {role: round(found.total) for role, found in one.cost.items()}
    return {"iterations": list(one.iterations), "calls": calls}


def describe_plan(bench: Benchmark) -> str:
    """A row a method."""
    settings = bench.settings
    rows = [f"{'':21}{'iterations':>24}" + "".join(f"{role:>11}" for role in budget.ROLES)]
    for name, one in bench.plans.items():
        calls = "".join(f"{one.cost[role].total:11.0f}" for role in budget.ROLES)
        rows.append(f"{name:21}{' + '.join(map(str, one.iterations)):>24}{calls}")
    runs, trials = (len(settings.entries) * len(some) for some in (settings.seeds, settings.factors))
    rows.append(
        f"{runs} runs, {trials} trials of {settings.sweep:.0%} of the calls and {settings.more} more at most for each "
        f"method, {settings.samples} samples judged a run"
    )
    return "\n".join(rows)


# ---------------------------------------------------------------------------- the command line


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.any_step", description=(__doc__ or "").splitlines()[0])
    names = [entry.name for entry in Settings().entries]
    parser.add_argument("--methods", nargs="+", choices=names, metavar="METHOD", help=f"of {', '.join(names)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="of training and of noise [0 1 2]")
    parser.add_argument("--budget", type=int, help=f"calls of the student on one sample [{Settings().budget}]")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each; 0: in this one [2]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no job is begun [no limit]")
    parser.add_argument("--cache", type=Path, help="where finished results are kept [OUT/cache, or runs/any_step]")
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
    folder = options.cache or (CACHE if options.out is None else options.out / "cache")
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: two progress bars on one line help nobody
    bench = Benchmark.of(settings, folder)
    print(describe_plan(bench), flush=True)
    if options.plan:
        return 0
    if options.report_only and not bench.begun:
        parser.error(f"--report-only: {folder} has no results of these settings")
    failed = [] if options.report_only else bench.run(options.jobs, 60 * options.minutes)
    found = report.summarise(bench.results())
    out = options.out or RESULTS
    report.write(found, out)
    print(report.markdown(found))
    print(out / f"{report.STUDY.name}.md")
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
    return 1 if failed else 0


def _settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    base = SMOKE if options.smoke else Settings()
    said: dict[str, Any] = {}
    if options.methods:
        said["entries"] = tuple(entry for entry in base.entries if entry.name in options.methods)
    if options.seeds:
        said["seeds"] = tuple(dict.fromkeys(options.seeds))
    if options.budget is not None:
        said["budget"] = options.budget
    if said and not options.smoke and options.out is None:
        parser.error("other methods, seeds or budgets need --out: they must not take the place of the results")
    try:
        return evolve(base, **said)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
