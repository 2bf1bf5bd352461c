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
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import kept, law_methods
from . import law_drift_report as report
from .law import CACHE, PICTURES, RESULTS, complete
from .law_drift_jobs import jobs_of
from .law_jobs import FULL, SMOKE
from .law_rows import MODELS

JOBS, KINDS = "law_drift_jobs.json", ("drift",)
SAMPLES, STEPS, SEEDS = 64, (4, 32), 10
"""SEEDS: below which a seed must be, to be in the report."""
SMOKED = ("stage_2", "history_grad")


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
