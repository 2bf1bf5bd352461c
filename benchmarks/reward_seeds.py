"""The quickstart's student before and after its training towards rewards, for several training seeds.

    python -m benchmarks.reward_seeds --cache runs/reward_seeds          # benchmarks/results/reward_seeds.json
    python -m benchmarks.reward_seeds --cache DIR --out FILE --smoke     # the same path through the code; means nothing

`recipes/quickstart.py` once, then `recipes/reward_student.py` from its student with each seed. Samples of held-out
prompts, the same noise for all; each number is the mean over seeds of noise, and over training seeds mean ± standard
error. What is trained is kept in --cache, and a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from attrs import evolve, frozen

from flowmap import Recipe, distill
from flowmap.cli import recipes
from flowmap.evaluation.curve import Bench, QualityCurve
from flowmap.evaluation.records import Point
from flowmap.training.run import environment

from . import jobs

CPU = torch.device("cpu")
METRICS = ("ink", "legible", "label_accuracy", "energy_distance", "feature_distance", "variety")


@frozen
class Settings:
    """seeds: of training. noise: seeds of it. longest: iterations of a stage at most; None is the recipe's."""

    seeds: tuple[int, ...] = (0, 1, 2)
    noise: tuple[int, ...] = (0, 1, 2)
    steps: tuple[int, ...] = (1, 4, 32)
    samples: int = 32
    longest: int | None = None


FULL = Settings()
SMOKE = Settings((0, 1), (0,), (1, 2), 32, 1)


def rewarded(student: Path, seed: int, longest: int | None = None) -> Recipe:
    """`recipes/reward_student.py` from that student."""
    own = recipes.load("reward_student").capped(longest)
    backbone = evolve(own.backbone, path=str(student))
    (stage,) = own.stages
    (update,) = stage.method.updates
    ((w, matching),) = update.terms
    matching = evolve(matching, scores=evolve(matching.scores, backbone=backbone))
    method = evolve(stage.method, updates=(evolve(update, terms=((w, matching),)),))
    return evolve(own, backbone=backbone, stages=(evolve(stage, method=method),), seed=seed)


def trained(settings: Settings, folder: Path) -> tuple[Path, list[Path]]:
    """The student before, and after by training seed."""
    start = _student(recipes.load("quickstart").capped(settings.longest), folder / "quickstart")
    own = [(rewarded(start, seed, settings.longest), folder / f"seed{seed}") for seed in settings.seeds]
    return start, [_student(recipe, out) for recipe, out in own]


def _student(recipe: Recipe, out: Path) -> Path:
    if not (out / "student" / "flowmap.json").is_file():
        distill(evolve(recipe, evaluation=None), out=out, previews=None, device="cpu")
    return out / "student"


def measured(student: Path, settings: Settings) -> dict[str, dict[str, float]]:
    """By metric, by number of steps: the mean over seeds of noise."""
    recipe = rewarded(student, 0)
    curve = recipe.evaluation
    assert isinstance(curve, QualityCurve)
    own = evolve(curve, steps=settings.steps, seeds=settings.noise, samples=settings.samples)
    nets = {"student": recipe.backbone.load(student, device=CPU, dtype=torch.float32)}
    bench = Bench.of(own, nets, recipe.backbone)  # type: ignore[arg-type]
    metrics = [metric for metric in own.metrics if metric.name in METRICS]
    found: dict[str, dict[str, float]] = {metric.name: {} for metric in metrics}
    for n in settings.steps:
        made = [bench.made(Point("student", "flow_map", n, n), seed) for seed in settings.noise]
        for metric in metrics:
            found[metric.name][str(n)] = fmean(metric.measure(one) for one in made)
    return found


def summary(before: Mapping[str, Mapping[str, float]], after: Sequence[Mapping[str, Mapping[str, float]]]) -> Any:
    """By metric and number of steps: before, and over training seeds [mean, standard error] of after, of after less
    before, and of after over before less 1."""
    return {
        name: {
            n: {
                "before": was,
                "after": spread(values := [one[name][n] for one in after]),
                "change": spread([value - was for value in values]),
                "share": spread([value / was - 1 for value in values]),
            }
            for n, was in by_steps.items()
        }
        for name, by_steps in before.items()
    }


def spread(values: Sequence[float]) -> tuple[float, float]:
    return fmean(values), stdev(values) / math.sqrt(len(values))


def main(argv: Sequence[str] | None = None) -> None:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_seeds", description=first)
    parser.add_argument("--cache", type=Path, required=True, help="where the runs are, or go")
    parser.add_argument("--out", type=Path, help="the file [benchmarks/results/reward_seeds.json, not of --smoke]")
    parser.add_argument("--smoke", action="store_true", help="everything, minutely")
    options = parser.parse_args(argv)
    if options.smoke and options.out is None:
        parser.error("--smoke needs --out: its numbers must not take the place of the results")
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    settings = SMOKE if options.smoke else FULL
    start, students = trained(settings, options.cache)
    before, after = measured(start, settings), [measured(student, settings) for student in students]
    told = {
        "training_seeds": settings.seeds,
        "seeds_of_noise": settings.noise,
        "samples_per_seed": settings.samples,
        "before": before,
        "after": after,
        "mean_and_error": summary(before, after),
        "environment": environment(),
    }
    jobs.write(options.out or jobs.ROOT / "benchmarks" / "results" / "reward_seeds.json", told)
    for name, by_steps in told["mean_and_error"].items():  # type: ignore[attr-defined]
        cells = (f"{n}: {o['before']:.3f} → {o['after'][0]:.3f} ± {o['after'][1]:.3f}" for n, o in by_steps.items())
        print(f"{name:18}", "   ".join(cells))


if __name__ == "__main__":
    main()
