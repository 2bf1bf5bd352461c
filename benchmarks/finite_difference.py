"""Which derivative trains a flow map best, and what its rounding costs: differences of several widths, in two types.

    python -m benchmarks.finite_difference --jobs 2           # resumable: a result that is there is not made again
    python -m benchmarks.finite_difference --smoke --out DIR  # everything, minutely; the numbers mean nothing

Stage 1 of `recipes/tiny_wan.py`, short, at equal calls of the student, since a Jacobian-vector product costs what the
two calls of a difference do. Students are judged in float32, whatever they were trained in, beside the teacher's guided
ODE: by the energy distance to its samples of other noise, without bias, and by the relative error to its endpoints of
the same noise. Then each trained student's differences are compared with those of the same weights in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from attrs import evolve, field, frozen, validators
from flowmap_digits.data import MovingDigits
from flowmap_wan.network import WanFlowMap
from flowmap_wan.outline import dtype_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowmap import FlowMap, Recipe, Rng, distill
from flowmap._types import Batch, Latent, Role
from flowmap.atomic import write_text
from flowmap.cli import recipes
from flowmap.data import Data
from flowmap.derivative import CentralDifference, Derivative, ForwardMode
from flowmap.guidance import guided_euler_step
from flowmap.model import sha256
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.path import expand, interpolate
from flowmap.recipe import Precision, describe, digest
from flowmap.rollout import sample
from flowmap.training.run import environment

from . import budget, jobs
from .curves import moments, spread, table

RESULTS = Path(__file__).parent / "results" / "finite_difference.json"
CACHE = jobs.ROOT / "runs" / "finite_difference"
BANDS = ((0.1, 0.4), (0.4, 0.7), (0.7, 0.95))
"""Of t, in which the noise of a difference is measured."""
WIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1)
TRAINED = (0.005, 0.02, 0.05, 0.1)
GUIDANCE = 3.0
JUDGED, OTHER = 1000, 1001
"""Seeds of noise: what students are judged on, and of the teacher's samples that they are compared with."""
CPU = torch.device("cpu")


@frozen
class Variant:
    name: str
    dtype: Precision
    derivative: Derivative


VARIANTS = (
    *(Variant(f"float32 h={h}", "float32", CentralDifference(h)) for h in TRAINED),
    *(Variant(f"bfloat16 h={h}", "bfloat16", CentralDifference(h)) for h in TRAINED),
    Variant("float32 exact", "float32", ForwardMode()),
    Variant("bfloat16 exact", "bfloat16", ForwardMode()),
)


@frozen
class Settings:
    """stage: iterations of stage 1. samples: judged, of each seed. reference: Euler steps of the teacher."""

    variants: tuple[Variant, ...] = field(default=VARIANTS, validator=validators.min_len(1))
    seeds: tuple[int, ...] = (0, 1)
    stage: int = 400
    batch: int = 12
    clips: int = 2048
    samples: int = 256
    steps: tuple[int, ...] = (1, 4, 16)
    reference: int = 50


SMOKE = Settings(variants=VARIANTS[1::3], seeds=(0,), stage=2, batch=4, clips=16, samples=4, steps=(1, 2), reference=2)


def recipe(settings: Settings, variant: Variant, seed: int) -> Recipe:
    """Stage 1 of tiny_wan with that derivative."""
    own = recipes.load("tiny_wan")
    stage = budget.scaled(own.stages[0], settings.batch, settings.stage / own.stages[0].steps, 1.0)
    (update,) = stage.method.updates
    ((weight, matching),) = update.terms
    assert isinstance(matching, FlowMapMatching) and isinstance(own.data, MovingDigits)
    update = evolve(update, terms=((weight, evolve(matching, derivative=variant.derivative)),))
    stage = evolve(stage, method=evolve(stage.method, updates=(update,)))
    data = evolve(own.data, count=settings.clips)
    return evolve(own, stages=(stage,), data=data, seed=seed, dtype=variant.dtype, evaluation=None, name="")


# ---------------------------------------------------------------------------- a job


@frozen
class Job:
    variant: Variant
    seed: int
    settings: Settings
    folder: Path

    def __str__(self) -> str:
        return f"{self.variant.name:16} seed {self.seed}"

    @property
    def path(self) -> Path:
        judged = (self.settings.samples, self.settings.steps, self.settings.reference)
        key = jobs.key(digest(recipe(self.settings, self.variant, self.seed)), judged)
        return self.folder / f"{self.variant.name.replace(' ', '_')}_seed{self.seed}_{key[:12]}.json"

    @property
    def found(self) -> dict[str, Any] | None:
        return json.loads(self.path.read_text()) if self.path.is_file() else None

    def perform(self) -> None:
        found = recipe(self.settings, self.variant, self.seed)
        start = time.process_time()
        student = distill(found, clips(self.settings))
        spent = time.process_time() - start
        weights = {name: p.detach().float().contiguous() for name, p in student.trained().items()}
        told = {
            "variant": self.variant.name,
            "dtype": self.variant.dtype,
            "seed": self.seed,
            "iterations": self.settings.stage,
            "batch": self.settings.batch,
            "seconds": spent,
            "values": judged(self.settings, loaded("float32", weights), self.folder),
            "noise": list(noise(self.settings, weights)),
            "code": jobs.code(),
            "environment": environment(),
        }
        jobs.write(self.path, told)

    def brief(self) -> str:
        assert self.found is not None
        values = self.found["values"]
        return "  ".join(f"{v['steps']}: {v['energy_distance']:.4f} {v['endpoint_error']:.3f}" for v in values)


@cache
def clips(settings: Settings) -> Data:
    """Through the recipe's own codec; once a process."""
    own = recipe(settings, settings.variants[0], 0)
    assert isinstance(own.data, MovingDigits)
    return own.data.load(own.backbone, None, device=CPU)


def loaded(dtype: Precision, weights: Mapping[str, Tensor]) -> FlowMap:
    """The student with those weights, computing in `dtype`."""
    backbone = recipes.load("tiny_wan").backbone
    (u,) = backbone.build(frozenset[Role]({"student"}), device=CPU, dtype=getattr(torch, dtype)).values()
    with torch.no_grad():
        for name, p in u.trained().items():
            p.copy_(weights[name])
    return u


@cache
def teacher() -> FlowMap:
    own = recipes.load("tiny_wan").backbone
    return own.build(frozenset[Role]({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]


# ---------------------------------------------------------------------------- judged


def drawn(settings: Settings, seed: int) -> tuple[Latent, Batch]:
    """Noise, and the prompts of clips; of another seed, others."""
    data, rng = clips(settings), Rng.seeded(seed)
    index = [(seed * settings.samples + i) % len(data) for i in range(settings.samples)]
    batch = data.batch(index)
    return rng.noise_like(batch.x), batch


def ode(settings: Settings, seed: int, folder: Path) -> Latent:
    """Where the teacher's guided ODE takes the noise of `seed`; once a folder."""
    start, batch = drawn(settings, seed)
    file = folder / f"ode_{settings.reference}_{sha256({'z': start, **batch.cond})[:12]}.safetensors"
    if not file.is_file():
        step, shift = guided_euler_step(GUIDANCE, batch.null), recipes.load("tiny_wan").backbone.shift
        with torch.no_grad():
            x = sample(teacher(), start, batch.cond, settings.reference, shift=shift, step=step)
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"x": x.contiguous()}, beside)
        beside.replace(file)
    return load_file(file)["x"]


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, without bias, per root of the number of elements: 0 of equal distributions.

    As a mean over pairs of different samples it may come out below 0.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()

    def within(a: Tensor) -> Tensor:
        return torch.cdist(a, a, compute_mode="donot_use_mm_for_euclid_dist").sum() / (len(a) * (len(a) - 1))

    across = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").mean()
    return float(2 * across - within(x) - within(y)) / math.sqrt(x.shape[1])


def judged(settings: Settings, student: FlowMap, folder: Path) -> list[dict[str, Any]]:
    """On noise that the teacher's ODE takes too, and beside its samples of other noise and prompts."""
    start, batch = drawn(settings, JUDGED)
    ends, others = ode(settings, JUDGED, folder), ode(settings, OTHER, folder)
    shift, found = recipes.load("tiny_wan").backbone.shift, []
    for n in settings.steps:
        with torch.no_grad():
            x = sample(student, start, batch.cond, n, shift=shift)
        error = float((x - ends).square().mean().sqrt() / ends.square().mean().sqrt())
        found.append({"steps": n, "energy_distance": energy_distance(x, others), "endpoint_error": error})
    return found


@torch.no_grad()
def noise(settings: Settings, weights: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    """|(t - r) (D - D in float32)| beside what there is to learn, |v - u|, of the same student; root mean squares."""
    narrow, wide = loaded("bfloat16", weights), rounded(weights)
    start, batch = drawn(evolve(settings, samples=max(2, settings.samples // 8)), JUDGED)
    for low, high in BANDS:
        at = torch.linspace(low, high, len(start))
        r = at * (torch.arange(len(at)) % 2) / 2  # the edge, and half way
        z, _ = interpolate(batch.x, start, at)
        v = teacher().velocity(z, at, batch.cond, batch.null, GUIDANCE)
        gap = expand(at - r, z)
        exact = gap * ForwardMode()(wide, z, at, r, v, batch.cond)
        found = {"t": [low, high], "v - u": rms(v - wide(z, at, r, batch.cond)), "exact": rms(exact)}
        for h in WIDTHS:
            D = CentralDifference(h)
            du = gap * D(wide, z, at, r, v, batch.cond)
            found[f"h={h}"] = {
                "bfloat16": rms(gap * D(narrow, z, at, r, v, batch.cond) - du),
                "float32": rms(du),
                "from exact": rms(du - exact),
            }
        yield found


def rounded(weights: Mapping[str, Tensor]) -> FlowMap:
    """In float32, with the weights that the narrow one multiplies with: what is left is rounding on the way."""
    u = loaded("float32", weights)
    assert isinstance(u, WanFlowMap)
    for name, p in u.trained().items():
        p.copy_(p.to(dtype_of(name, type(u.net), torch.bfloat16)))
    return u


def rms(x: Tensor) -> float:
    """Of a sample, the mean over samples."""
    return float(x.square().flatten(1).mean(1).sqrt().mean())


# ---------------------------------------------------------------------------- the report


def summarise(settings: Settings, folder: Path) -> dict[str, Any]:
    """One record a variant, of the seeds that are there; the teacher's own samples beside them."""
    records = []
    for variant in settings.variants:
        some = [found for seed in settings.seeds if (found := Job(variant, seed, settings, folder).found) is not None]
        at = {n: [v for one in some for v in one["values"] if v["steps"] == n] for n in settings.steps}
        records.append(
            {
                "variant": variant.name,
                "seeds": [one["seed"] for one in some],
                "seconds": moments(one["seconds"] for one in some),
                **{
                    metric: {str(n): moments(v[metric] for v in values) for n, values in at.items()}
                    for metric in ("energy_distance", "endpoint_error")
                },
                "noise": [one["noise"] for one in some],
            }
        )
    ends, others = (ode(settings, seed, folder) for seed in (JUDGED, OTHER))
    told = {name: value for name, value in describe(settings).items() if name != "type"}
    return {
        "settings": told,
        "teacher": {"energy_distance": energy_distance(ends, others)},
        "records": records,
        "environment": environment(),
    }


def markdown(found: Mapping[str, Any]) -> str:
    steps = [str(n) for n in found["settings"]["steps"]]
    lines = ["# Differences in the start time", ""]
    for metric in ("energy_distance", "endpoint_error"):
        rows = [[r["variant"], *(spread(r[metric][n], 3) for n in steps)] for r in found["records"]]
        lines += [f"## {metric.replace('_', ' ').capitalize()}", ""]
        lines += table([f"{metric.replace('_', ' ')} at", *(f"{n} steps" for n in steps)], rows)
    lines += [f"The teacher's own samples: energy distance {found['teacher']['energy_distance']:.4f}.", ""]
    lines += ["## Noise", "", "Shares of |v - u|, mean over the bands of t and seeds.", ""]
    rows = []
    for r in found["records"]:
        bands = [band for one in r["noise"] for band in one]
        if bands:
            shares = [fmean(b[f"h={h}"]["bfloat16"] / b["v - u"] for b in bands) for h in WIDTHS]
            rows.append([r["variant"], *(f"{share:.2f}" for share in shares)])
    return "\n".join([*lines, *table(["trained with", *(f"h = {h}" for h in WIDTHS)], rows)])


def ready(settings: Settings, folder: Path) -> Iterable[Job]:
    return [Job(variant, seed, settings, folder) for seed in settings.seeds for variant in settings.variants]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finite_difference", description=(__doc__ or "").splitlines()[0]
    )
    names = {variant.name: variant for variant in VARIANTS}
    parser.add_argument("--variants", nargs="+", choices=list(names), metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="of training [0 1]")
    parser.add_argument("--stage", type=int, help="iterations [400]")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each; 0: in this one [2]")
    parser.add_argument("--cache", type=Path, help="where finished results are kept [runs/finite_difference]")
    parser.add_argument("--out", type=Path, help=f"a file for the report [{RESULTS.name}, but not of --smoke]")
    parser.add_argument("--report-only", action="store_true", help="report on what is there")
    parser.add_argument("--smoke", action="store_true", help="everything, minutely; the numbers mean nothing")
    options = parser.parse_args(argv)
    if options.smoke and options.out is None:
        parser.error("--smoke needs --out: its numbers must not take the place of the results")
    said: dict[str, Any] = {}
    if options.variants:
        said["variants"] = tuple(names[name] for name in options.variants)
    if options.seeds:
        said["seeds"] = tuple(options.seeds)
    if options.stage:
        said["stage"] = options.stage
    settings = evolve(SMOKE if options.smoke else Settings(), **said)
    folder = options.cache or (options.out.parent / "cache" if options.smoke else CACHE)
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: two progress bars on one line help nobody
    for seed in (JUDGED, OTHER):
        ode(settings, seed, folder)
    failed = [] if options.report_only else jobs.complete(lambda: ready(settings, folder), options.jobs)
    found = summarise(settings, folder)
    out = options.out or RESULTS
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(found, indent=1) + "\n")
    print(markdown(found))
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
