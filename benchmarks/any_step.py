"""Quality against the number of steps, on a mixture of eight Gaussians in the plane.

    python -m benchmarks.any_step               # three seeds; writes benchmarks/results/any_step_2d.{json,png,md}
    python -m benchmarks.any_step --smoke --out DIR     # the same path through the code in a minute; means nothing

AnyFlow, arXiv:2605.13724, figure 1, at a scale where the teacher is exact: the teacher's own ODE by Euler steps; a
stage-1 student that learned from data and one that learned from the teacher's velocity, each sampled along the flow
and by re-noising, with the same weights; and stage 2 with and without co-training, from the student of the data.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from attrs import evolve, field, frozen, validators

from flowmap import AdamW, Ema, FlowMap, Recipe, Rng, Stage, TensorData, distill, sample
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.objectives.distribution_matching import CriticMatching
from flowmap.rollout import FlowMapBackwardSimulation, Step, consistency_step, euler_step, ode_step
from flowmap.times import Diagonal, LogitNormal

from . import any_step_report as report
from .any_step_report import Value
from .metrics2d import directions, outliers, paired_error, sliced_w2, weight_tv
from .mixture2d import ExactVelocity, Mixture2D, latents, ode_endpoints

RESULTS = Path(__file__).parent / "results"
count = validators.ge(1)


@frozen
class Settings:
    """stage1, warmup: iterations; stage2: updates of the student, each with two of the critic. samples: judged."""

    seeds: tuple[int, ...] = (0, 1, 2)
    stage1: int = field(default=8000, validator=count)
    warmup: int = field(default=500, validator=count)
    stage2: int = field(default=2000, validator=count)
    batch: int = field(default=1024, validator=count)
    ema: tuple[float, float] = (0.999, 0.99)  # of the stages
    data: int = field(default=1 << 20, validator=count)
    samples: int = field(default=48_000, validator=[count, lambda i, a, n: _divides(n)])
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    budgets: tuple[int, ...] = (2, 4, 8, 16)
    backbone: Mixture2D = Mixture2D()


def _divides(samples: int) -> None:
    if samples % 12:
        raise ValueError(f"Settings.samples = {samples}: must be a multiple of 12, the sum of the modes' weights")


FULL = Settings()
SMOKE = Settings(stage1=200, warmup=20, stage2=40, batch=256, ema=(0.95, 0.95), data=1 << 14, samples=3000)

# ---------------------------------------------------------------------------- training


def forward(settings: Settings, velocity: Literal["data", "teacher"]) -> Stage:
    """Stage 1: no shift, no guidance."""
    method = anyflow.forward(shift=1.0, guidance=1.0, drop=0.0, velocity=velocity)
    optimizer = AdamW(lr=1e-3, betas=(0.9, 0.95), schedule="cosine", floor=1e-2)
    return Stage(method, settings.stage1, settings.batch, optimizer=optimizer, ema=Ema(settings.ema[0]))


def on_policy(settings: Settings, *, cotrain: float) -> tuple[Stage, Stage]:
    """Stage 2, after the fresh critic has seen the student's samples for a while; two critic updates a student's."""
    rollout = FlowMapBackwardSimulation(settings.budgets, 1.0)
    learn = CriticMatching(rollout, Diagonal(LogitNormal(), 1.0))
    warmup = Method("critic_warmup", (Update("critic", ((1.0, learn),)),))
    method = anyflow.on_policy(
        shift=1.0,
        guidance=1.0,
        teacher_guidance=1.0,
        drop=0.0,
        steps=settings.budgets,
        cotrain=cotrain,
        student_every=2,
        share_rollout=False,
    )
    adam = AdamW(lr=2e-4, betas=(0.0, 0.999))
    return (
        Stage(warmup, settings.warmup, settings.batch, optimizer=evolve(adam, lr=1e-3), ema=None),
        Stage(method, 2 * settings.stage2, settings.batch, optimizer=adam, ema=Ema(settings.ema[1])),
    )


def train(settings: Settings, seed: int, stages: Sequence[Stage], start: Path | None = None) -> FlowMap:
    backbone = evolve(settings.backbone, seed=seed, start=start)
    data = TensorData(latents(backbone.mixture.draw(settings.data, Rng.seeded(seed, 1))))
    return distill(Recipe(backbone, stages, data=data, seed=seed), device="cpu")


# ---------------------------------------------------------------------------- judging


@frozen
class Judge:
    """The same noise and the same reference for every network of a seed."""

    settings: Settings
    seed: int
    noise: torch.Tensor = field(init=False)
    reference: torch.Tensor = field(init=False)
    endpoints: torch.Tensor = field(init=False)

    def __attrs_post_init__(self) -> None:
        mixture, n = self.settings.backbone.mixture, self.settings.samples
        noise = latents(Rng.seeded(self.seed, 2).noise_like(torch.empty(n, 2)))
        ends = torch.cat([ode_endpoints(mixture, z) for z in torch.split(noise, 2048)])
        object.__setattr__(self, "noise", noise)
        object.__setattr__(self, "reference", mixture.draw_stratified(n, Rng.seeded(self.seed, 3)))
        object.__setattr__(self, "endpoints", ends.reshape(-1, 2))

    def __call__(self, u: FlowMap, model: str, sampler: str, step: Step) -> list[Value]:
        values: list[Value] = []
        for n in self.settings.steps:
            chunks = [  # small enough for the cache
                sample(u, z, {}, n, step=step, rng=Rng.seeded(self.seed, 4, n, i))
                for i, z in enumerate(torch.split(self.noise, 2048))
            ]
            found = self.metrics(torch.cat(chunks).reshape(-1, 2))
            values += [Value(model, sampler, n, metric, self.seed, value) for metric, value in found.items()]
        w2 = " ".join(f"{v.value:.3f}" for v in values if v.metric == "sliced_w2")
        print(f"seed {self.seed}  {model} / {sampler}: sliced W2 {w2}", flush=True)
        return values

    def metrics(self, x: torch.Tensor) -> dict[str, float]:
        mixture = self.settings.backbone.mixture
        return {
            "sliced_w2": sliced_w2(x, self.reference, directions()),
            "paired_error": paired_error(x, self.endpoints),
            "outliers": outliers(x, mixture),
            "weight_tv": weight_tv(x, mixture),
        }

    def floor(self) -> list[Value]:
        """What a fresh draw of the data scores, and the ODE's endpoints."""
        fresh = self.metrics(self.settings.backbone.mixture.draw(self.settings.samples, Rng.seeded(self.seed, 5)))
        del fresh["paired_error"]
        ends = self.metrics(self.endpoints)
        return [
            *(Value("data", "fresh draw", 0, metric, self.seed, value) for metric, value in fresh.items()),
            *(Value("exact velocity", "ode", 0, metric, self.seed, value) for metric, value in ends.items()),
        ]


# ---------------------------------------------------------------------------- the two jobs of a seed

Job: TypeAlias = Callable[[], list[Value]]


def from_data(settings: Settings, seed: int) -> list[Value]:
    """Stage 1 on data, then stage 2 twice."""
    judge = Judge(settings, seed)
    student = train(settings, seed, [forward(settings, "data")])
    values = judge(student, "stage 1, data", "flow map", ode_step)
    values += judge(student, "stage 1, data", "re-noise", consistency_step)
    with tempfile.TemporaryDirectory() as folder:
        settings.backbone.save(student, Path(folder))
        for model, cotrain in (("stage 1 + 2, no co-training", 0.0), ("stage 1 + 2", 1.0)):
            tuned = train(settings, seed, on_policy(settings, cotrain=cotrain), Path(folder))
            values += judge(tuned, model, "flow map", ode_step)
            values += judge(tuned, model, "re-noise", consistency_step)
    return values


def from_teacher(settings: Settings, seed: int) -> list[Value]:
    """The teacher's own ODE, and stage 1 on its velocity."""
    judge = Judge(settings, seed)
    values = judge.floor()
    values += judge(ExactVelocity(settings.backbone.mixture), "exact velocity", "Euler", euler_step)
    student = train(settings, seed, [forward(settings, "teacher")])
    values += judge(student, "stage 1, teacher", "flow map", ode_step)
    values += judge(student, "stage 1, teacher", "re-noise", consistency_step)
    return values


def jobs(settings: Settings) -> list[Job]:
    """The long ones first."""
    return [partial(job, settings, seed) for job in (from_data, from_teacher) for seed in settings.seeds]


def run(settings: Settings, workers: int = 0) -> tuple[list[Value], float]:
    """The values, and the processor's seconds. workers: processes of one thread each; 0 stays in this one."""
    values: list[Value] = []
    seconds = 0.0
    for found, spent in _results(jobs(settings), workers):
        values += found
        seconds += spent
    return values, seconds


def _results(jobs: Sequence[Job], workers: int) -> Iterator[tuple[list[Value], float]]:
    if not workers:
        yield from map(_timed, jobs)
        return
    with get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(_timed, jobs, chunksize=1)
        pool.close()
        pool.join()


def _timed(job: Job) -> tuple[list[Value], float]:
    start = time.process_time()
    return job(), time.process_time() - start


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.any_step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one minute instead of ten; the numbers mean nothing")
    parser.add_argument("--out", type=Path, help=f"a directory for the results [{RESULTS.name}/, but not of --smoke]")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each [2]")
    options = parser.parse_args(argv)
    if options.smoke and options.out is None:
        parser.error("--smoke needs --out: its numbers must not take the place of the results")
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: two progress bars on one line help nobody
    settings, start = SMOKE if options.smoke else FULL, time.monotonic()
    values, spent = run(settings, options.workers)
    context = report.Context(time.monotonic() - start, spent, options.workers)
    found = report.summarise(values, settings, context)
    out = options.out or RESULTS
    report.write(found, out)
    print(report.markdown(found))


if __name__ == "__main__":
    main()
