"""APT 2 on the small causal student, at one step a chunk before and after it.

    python -m benchmarks.aapt --cache runs/aapt                 # benchmarks/results/aapt.json; goes on where it was
    python -m benchmarks.aapt --cache DIR --out FILE --smoke    # the same path through the code; means nothing

At the scale of `law`: a causal diffusion model, 500 iterations, and its consistency from data, 500, are the start that
`aapt` asks for; then so many of it, with a causal critic of the teacher's weights; and beside that as much computing of
the consistency alone, from the same start with the same optimiser. Samples of held-out prompts by jumps to data, the
same noise for all; mean ± standard deviation over seeds of noise, and of the differences, seed by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from attrs import evolve, frozen
from flowmap_digits.drift import EDGES, absolute_drift, glyph_distance
from flowmap_digits.evaluation import METRICS, curve, real_clips
from flowmap_digits.videos import prompts_with

from flowmap import Recipe, distill
from flowmap.evaluation import Samples
from flowmap.evaluation.curve import Bench
from flowmap.evaluation.records import Point
from flowmap.training.run import environment

from . import jobs
from .law_rows import AT_SCALE, CAUSAL, GUIDANCE, Row

CPU = torch.device("cpu")
NAMES = {m.name: m.better for m in METRICS if m.name != "endpoint_error"}
"""Without the distance to a teacher's path, which is none of a student that is trained on data."""


@frozen
class Settings:
    """iterations: of the three stages. longer: of the consistency that goes on in place of the last. samples: of each
    seed of noise, sixteen prompts in turn."""

    iterations: tuple[int, int, int] = (500, 500, 100)
    longer: int = 1000
    batch: int = 16
    clips: int = 4096
    samples: int = 128
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


FULL = Settings()
SMOKE = Settings((1, 1, 1), 1, 2, 4, 32, (0, 1))


def recipes(settings: Settings, start: Path) -> dict[str, Recipe]:
    """The start, and what goes on from what it left in `start`."""
    full = Row("aapt", "APT 2", AT_SCALE, "aapt", CAUSAL).recipe(clips=settings.clips)
    stages = [evolve(s, steps=n, batch=settings.batch) for s, n in zip(full.stages, settings.iterations, strict=True)]
    first = evolve(full, stages=tuple(stages[:2]), evaluation=None, name="aapt_start")
    backbone, critic = evolve(CAUSAL, path=str(start)), evolve(CAUSAL, causal_critic=True)
    last = stages[2]
    on = evolve(last, method=stages[1].method, steps=settings.longer, optimizer=last.optimizer_of("student"))
    return {
        "before": first,
        "after": Recipe(backbone, (last,), critic=critic, data=full.data, seed=0, name="aapt_small"),
        "longer": Recipe(backbone, (on,), data=full.data, seed=0, name="aapt_longer"),
    }


def trained(settings: Settings, folder: Path) -> Mapping[str, Path]:
    """The students by name."""
    start, found = folder / "before" / "student", {}
    for name, recipe in recipes(settings, start).items():
        found[name] = folder / name / "student"
        if not (found[name] / "flowmap.json").is_file():
            distill(recipe, out=folder / name, previews=None, device="cpu")
    return found


def measured(students: Mapping[str, Path], settings: Settings) -> dict[str, dict[str, list[float]]]:
    """By model, real clips among them, by metric, a value a seed."""
    nets = {name: CAUSAL.load(path, device=CPU, dtype=torch.float32) for name, path in students.items()}
    own = curve(guidance=GUIDANCE, steps=(1,), seeds=settings.seeds, samples=settings.samples)
    found: dict[str, dict[str, list[float]]] = {}
    point = Point("student", "consistency", 1, 1)
    for name, u in nets.items():
        bench = Bench.of(own, {"student": u}, CAUSAL)
        found[name] = _each([bench.made(point, seed) for seed in settings.seeds])
        found.setdefault("real", _each([bench.real(real_clips, seed) for seed in settings.seeds]))
    return found


def _each(made: Sequence[Samples]) -> dict[str, list[float]]:
    values = {m.name: [m.measure(one) for one in made] for m in METRICS if m.name in NAMES}
    for name, per_chunk in (("absolute_drift", absolute_drift), ("glyph_distance", glyph_distance)):
        values[f"{name}_last"] = [per_chunk(one.videos, prompts_with(one.prompts), EDGES)[-1] for one in made]
    return values


def summary(values: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, list[float]]]:
    """[mean, standard deviation over seeds] of each, and of after − before and after − longer seed by seed."""
    found = {model: {name: _spread(each) for name, each in own.items()} for model, own in values.items()}
    for other in ("before", "longer"):
        pairs = {name: zip(values["after"][name], values[other][name], strict=True) for name in values["after"]}
        found[f"after - {other}"] = {name: _spread([a - b for a, b in pair]) for name, pair in pairs.items()}
    return found


def _spread(values: Sequence[float]) -> list[float]:
    return [fmean(values), stdev(values)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aapt", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="where the two runs are, or go")
    parser.add_argument("--out", type=Path, default=jobs.ROOT / "benchmarks" / "results" / "aapt.json")
    parser.add_argument("--smoke", action="store_true", help="everything, minutely")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = SMOKE if options.smoke else FULL
    values = measured(trained(settings, options.cache), settings)
    told: dict[str, Any] = {
        "iterations": settings.iterations,
        "longer": settings.longer,
        "batch": settings.batch,
        "samples_per_seed": settings.samples,
        "seeds_of_noise": settings.seeds,
        "training_seeds": 1,
        "mean_and_deviation": summary(values),
        "values": values,
        "environment": environment(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    for name in values["real"]:
        cells = ((model, *own[name]) for model, own in told["mean_and_deviation"].items())
        print(f"{name:26}", "   ".join(f"{model} {m:.3f} ± {s:.3f}" for model, m, s in cells))


if __name__ == "__main__":
    main()
