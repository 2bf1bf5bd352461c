"""The any-step law, where more steps help: quality against steps without guidance, by method, at equal student calls.

    python -m benchmarks.law --seeds 0 1 2              # writes benchmarks/results/law* and docs/images/law.png
    python -m benchmarks.law --minutes 30               # as much as that; the same command goes on
    python -m benchmarks.law --methods anyflow rcm      # some rows, in this order
    python -m benchmarks.law --sweep                    # first: every method's rates, by prompts that judge nothing
    python -m benchmarks.law --equal time               # after that: trained for as long as AnyFlow by the clock
    python -m benchmarks.law --ablations                # AnyFlow with one change each
    python -m benchmarks.law --report                   # files and figure of what is there
    python -m benchmarks.law --smoke --out DIR          # the same path through the code; means nothing

The shipped teacher at guidance 1 is far from real clips in few steps and near to them in many, so whether a student
gains from more steps can be seen. The measures are unbiased at every number of samples: energy distances of latents
and of features to real clips of the same prompts, and variety. Every result is a file under --cache, written as it
ends; the report has them all in law_jobs.json, which the command begins with, so that another machine goes on.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from . import kept, law_methods
from . import law_report as report
from .jobs import ROOT
from .law_jobs import FULL, SMOKE, Judging, Settings, jobs_of
from .law_rows import ABLATIONS, COUNTS, NAMES, ROWS, Row
from .law_tuning import rated, timed, trials

RESULTS, PICTURES, CACHE = ROOT / "benchmarks" / "results", ROOT / "docs" / "images", ROOT / "runs" / "law"
SMOKED = ("anyflow_1",)
JOBS, KINDS = "law_jobs.json", ("records", "trials")


def complete(jobs: Iterable[Judging], seconds: float = math.inf) -> list[str]:
    """Do what is not done, one after the other, until the time is over; what failed, in words: the others go on."""
    until, failed = time.monotonic() + seconds, []
    for job in jobs:
        if job.found is not None:
            continue
        if time.monotonic() > until:
            print("the time is over; the same command goes on", flush=True)
            break
        start = time.monotonic()
        try:
            values = job.perform()["values"]
            told = "  ".join(f"{name} {value:.3f}" for name, value in values.items()) or "diverged"
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            failed.append(f"{job}: {told}")
        print(f"{time.strftime('%H:%M:%S')}  {job}  {time.monotonic() - start:5.0f} s  {told}", flush=True)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.law", description=(__doc__ or "").splitlines()[0])
    names = [row.name for row in ROWS]
    parser.add_argument("--methods", nargs="+", choices=[*NAMES], metavar="METHOD", help=f"of {', '.join(names)} [all]")
    parser.add_argument(
        "--ablations", action="store_true", help="AnyFlow with one change each, in place of the methods"
    )
    parser.add_argument("--sweep", action="store_true", help="try learning rates; later runs take the best")
    parser.add_argument("--equal", choices=("calls", "time"), default="calls", help="of the student, or of training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training and of noise [0]")
    parser.add_argument("--samples", type=int, help="judged, of each seed, by each number of steps [512]")
    parser.add_argument("--steps", nargs="+", type=int, choices=COUNTS, help="some of 1 2 4 8 16 32 [all]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no job is begun")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda [cpu]")
    parser.add_argument("--cache", type=Path, help="where finished jobs are kept [runs/law]")
    parser.add_argument("--out", type=Path, help="a directory for the report [benchmarks/results, not of --smoke]")
    parser.add_argument("--report", action="store_true", help="of what is there; nothing is run")
    parser.add_argument("--smoke", action="store_true", help="everything, minutely; the numbers mean nothing")
    options = parser.parse_args(argv)
    if options.smoke and options.out is None:
        parser.error("--smoke needs --out: its numbers must not take the place of the results")
    settings = _settings(options, parser)
    folder = options.cache or (options.out / "cache" if options.smoke else CACHE)
    os.environ["TQDM_DISABLE"] = "1"
    seeds = tuple(dict.fromkeys(options.seeds))
    failed = []
    if not options.smoke:
        kept.unpack(RESULTS / JOBS, folder)
    if not options.report:
        failed = complete(_jobs(options, seeds, settings, folder), 60 * options.minutes)
    found = report.summarise(settings if options.smoke else evolve(settings, steps=COUNTS), folder)
    report.write(found, options.out or RESULTS, options.out or PICTURES)
    law_methods.write(options.out or RESULTS)
    kept.pack(folder, KINDS, (options.out or RESULTS) / JOBS)
    print(report.markdown(found))
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
    return 1 if failed else 0


def _jobs(options: argparse.Namespace, seeds: tuple[int, ...], settings: Settings, folder: Path) -> Iterable[Judging]:
    rows = _rows(options)
    if options.sweep:
        return [one for row in rows if row.name != "anyflow_1" for one in trials(row, settings, folder)]
    if options.equal == "time":
        found = [one for row in rows if (one := timed(row, settings, folder)) is not None]
        return jobs_of(tuple(found), seeds, settings, folder)
    return jobs_of(tuple(rated(row, settings, folder) for row in rows), seeds, settings, folder)


def _rows(options: argparse.Namespace) -> tuple[Row, ...]:
    if options.methods:
        return tuple(NAMES[name] for name in dict.fromkeys(options.methods))
    if options.ablations:
        return ABLATIONS
    return tuple(NAMES[name] for name in SMOKED) if options.smoke else ROWS


def _settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    said: dict[str, Any] = {} if options.device == "cpu" else {"device": options.device}
    if options.samples is not None:
        said["samples"] = options.samples
    if options.steps:
        said["steps"] = tuple(sorted(set(options.steps)))
    try:
        return evolve(SMOKE if options.smoke else FULL, **said)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
