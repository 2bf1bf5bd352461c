"""The scale of `Balanced`, in the plane: which one trains best where the velocity is the teacher's.

    python -m benchmarks.balanced_scale                  # some six minutes of one core; resumable
    python -m benchmarks.balanced_scale --smoke --out DIR

Student and teacher begin as one network, without guidance, so that a diagonal that is learnt already has nothing to
teach. Both stages of AnyFlow with `cotrain=1`; each student is judged after stage 1 and after both, by its sliced W2
distance to the data and by the root mean square distance of its endpoints to those of the exact ODE, on the same noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from flowmap import AdamW, Ema, Recipe, Rng, Stage, TensorData, distill
from flowmap._types import Shared, Time
from flowmap.method import Method
from flowmap.methods import anyflow
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.reweights import Balanced, Beta, Reweight
from flowmap.rollout import ode_step, sample
from flowmap.training.run import environment

from . import plane
from .metrics2d import directions, sliced_w2
from .mixture2d import Mixture2D, latents, ode_endpoints

RESULTS = Path(__file__).parent / "results" / "balanced_scale.json"
STEPS = (1, 2, 4, 16, 64)


@frozen
class WithoutNoise:
    """`Balanced` as published, whatever the velocity: μ / (loss + c), μ the mean loss on the diagonal."""

    balanced: Balanced = Balanced()

    def __call__(self, loss: Tensor, noise: Tensor, t: Time, r: Time, shared: Shared) -> Tensor:
        return self.balanced(loss, torch.zeros_like(noise), t, r, shared)


SCALES: Mapping[str, tuple[str, str, tuple[Reweight, ...]]] = {
    "sample": ("noise in both places, a sample", "teacher", (Balanced(),)),
    "batch": ("noise in both places, a ratio of means", "teacher", (Balanced(by="batch"),)),
    "none": ("no scale", "teacher", ()),
    "published": ("as published", "teacher", (WithoutNoise(),)),
    "data": ("as published", "data", (Balanced(),)),
}
"""By name: what it is, whose velocity, and what comes after the weight of time."""


@frozen
class Settings:
    """start: iterations in which the network that student and teacher begin as learns the exact velocity."""

    start: int = 3000
    steps: tuple[int, int] = (1500, 300)
    batch: int = 256
    data: int = 1 << 16
    samples: int = 12_000
    seeds: tuple[int, ...] = (0, 1)
    backbone: Mixture2D = field(factory=Mixture2D)


SMOKE = Settings(start=20, steps=(20, 4), batch=32, data=1024, samples=600, seeds=(0,), backbone=Mixture2D().tiny())


def rescaled(method: Method, scale: Sequence[Reweight]) -> Method:
    def changed(objective: Any) -> Any:
        if not isinstance(objective, FlowMapMatching):
            return objective
        return evolve(objective, reweight=(Beta(1.0, 0.5, 1.0), *scale))

    updates = (evolve(u, terms=tuple((w, changed(o)) for w, o in u.terms)) for u in method.updates)
    return evolve(method, updates=tuple(updates))


def recipe(name: str, seed: int, backbone: Mixture2D, settings: Settings) -> Recipe:
    _, velocity, scale = SCALES[name]
    common: dict[str, Any] = {"shift": 1.0, "guidance": 1.0, "drop": 0.0, "velocity": velocity}
    first = anyflow.forward(**common)
    second = anyflow.on_policy(teacher_guidance=1.0, steps=(1, 2, 4, 8, 16, 32, 64), **common)
    long, short = settings.steps
    forward = AdamW(1e-3, (0.9, 0.99), warmup=50, schedule="cosine", floor=0.01)
    student = AdamW(1e-4, (0.0, 0.99), warmup=20, schedule="cosine", floor=0.1)
    critic = AdamW(3e-4, (0.0, 0.99), warmup=20)
    stages = (
        Stage(rescaled(first, scale), long, settings.batch, optimizer=forward, ema=Ema(0.995, long // 4)),
        Stage(
            rescaled(second, scale),
            short,
            settings.batch,
            optimizer={"student": student, "critic": critic},
            ema=Ema(0.98, short // 6),
        ),
    )
    points = latents(settings.backbone.mixture.draw(settings.data, Rng.seeded(seed, 1)))
    return Recipe(backbone, stages, data=TensorData(points), seed=seed)


def judge(seed: int, settings: Settings) -> Callable[[Any], dict[str, list[float]]]:
    mixture, n = settings.backbone.mixture, settings.samples
    noise = latents(Rng.seeded(seed, 2).noise_like(torch.empty(n, 2)))
    reference, ends = mixture.draw_stratified(n, Rng.seeded(seed, 3)), ode_endpoints(mixture, noise)

    @torch.no_grad()
    def judged(u: Any) -> dict[str, list[float]]:
        made = [sample(u, noise, {}, n, step=ode_step) for n in STEPS]
        return {
            "sliced_w2": [round(float(sliced_w2(x.reshape(-1, 2), reference, directions())), 4) for x in made],
            "to_the_ode": [round(float((x - ends).square().flatten(1).sum(1).mean().sqrt()), 4) for x in made],
        }

    return judged


def run(name: str, seed: int, backbone: Mixture2D, settings: Settings) -> dict[str, Any]:
    whole, judged = recipe(name, seed, backbone, settings), judge(seed, settings)
    first = distill(evolve(whole, stages=whole.stages[:1]), device="cpu")
    return {"stage 1": judged(first), "both stages": judged(distill(whole, device="cpu"))}


def table(found: Mapping[str, Any]) -> str:
    """Sliced W2 after both stages, the mean over seeds."""
    rows = ["| scale | velocity | " + " | ".join(f"{n} step{'s' * (n > 1)}" for n in STEPS) + " |"]
    rows.append("|" + "---|" * (2 + len(STEPS)))
    for name, (title, velocity, _) in SCALES.items():
        its = [run["both stages"]["sliced_w2"] for key, run in found.items() if key.split("/")[0] == name]
        means = [statistics.mean(values) for values in zip(*its, strict=True)]
        rows.append(f"| {title} | {velocity} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS.parent, help="where balanced_scale.json goes")
    parser.add_argument("--smoke", action="store_true", help="a minute's trial, which says nothing")
    asked = parser.parse_args(arguments)
    settings, out = SMOKE if asked.smoke else Settings(), asked.out / RESULTS.name
    found = json.loads(out.read_text())["runs"] if out.is_file() else {}
    torch.set_num_threads(1)
    begun = evolve(plane.SMOKE if asked.smoke else plane.Settings(), start=settings.start, data=settings.data)
    left = [(name, seed) for name in SCALES for seed in settings.seeds if f"{name}/{seed}" not in found]
    with tempfile.TemporaryDirectory() as start:
        if left:
            settings.backbone.save(distill(plane.beginning(begun), device="cpu"), Path(start))
        for name, seed in left:
            found[f"{name}/{seed}"] = run(name, seed, evolve(settings.backbone, start=Path(start)), settings)
            told = {"steps": STEPS, "runs": found, "environment": environment()}
            out.write_text(json.dumps(told, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
