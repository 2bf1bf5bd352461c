"""What judges a network of the plane: samples of it, at some numbers of steps, against the data and the exact ODE."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from safetensors.torch import load_file, save_file

from flowmap import FlowMap, Rng
from flowmap.recipe import describe
from flowmap.rollout import consistency_step, euler_step, ode_step, sample

from .jobs import key
from .metrics2d import directions, outliers, paired_error, sliced_w2, weight_tv
from .mixture2d import Mixture, latents, ode_endpoints

STEPS = {"flow_map": ode_step, "consistency": consistency_step, "euler": euler_step}
CHUNK = 2048
"""Points in a call: small enough for a core's cache."""


@frozen
class Judge:
    """The same noise and the same reference for every network of a seed.

    paired: compare with where the exact ODE ends, which is kept under `folder`.
    """

    mixture: Mixture
    samples: int
    seed: int
    folder: Path
    paired: bool
    noise: torch.Tensor = field(init=False, eq=False)
    reference: torch.Tensor = field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        noise = latents(Rng.seeded(self.seed, 2).noise_like(torch.empty(self.samples, 2)))
        reference = self.mixture.draw_stratified(self.samples, Rng.seeded(self.seed, 3))
        object.__setattr__(self, "noise", noise)
        object.__setattr__(self, "reference", reference)

    def __call__(self, u: FlowMap, which: str, steps: Iterable[int]) -> Iterator[dict[str, Any]]:
        for n in steps:
            chunks = [
                sample(u, z, {}, n, step=STEPS[which], rng=Rng.seeded(self.seed, 4, n, i))
                for i, z in enumerate(torch.split(self.noise, CHUNK))
            ]
            yield from self.measured(torch.cat(chunks).reshape(-1, 2), which, n)

    def measured(self, x: torch.Tensor, which: str, steps: int) -> Iterator[dict[str, Any]]:
        """One value a metric; None where samples are not finite."""
        finite = bool(x.isfinite().all())
        measures = {
            "sliced_w2": lambda: sliced_w2(x, self.reference, directions()),
            "outliers": lambda: outliers(x, self.mixture),
            "weight_tv": lambda: weight_tv(x, self.mixture),
        }
        if self.paired and which != "none":
            measures["paired_error"] = lambda: paired_error(x, self.endpoints)
        for metric, measure in measures.items():
            yield {"sampler": which, "steps": steps, "metric": metric, "value": measure() if finite else None}

    @property
    def endpoints(self) -> torch.Tensor:
        """[samples, 2], from a file: they cost more than many a student's curve."""
        told = key(describe(self.mixture), self.samples, self.seed)
        path = self.folder / "endpoints" / f"seed{self.seed}_{told[:12]}.safetensors"
        if not path.is_file():
            ends = torch.cat([ode_endpoints(self.mixture, z) for z in torch.split(self.noise, CHUNK)]).reshape(-1, 2)
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}.partial")
            save_file({"ends": ends}, beside)
            beside.replace(path)
        return load_file(path)["ends"]

    def fresh(self) -> Iterator[dict[str, Any]]:
        """What a draw of the data scores, for want of samples."""
        return self.measured(self.mixture.draw(self.samples, Rng.seeded(self.seed, 5)), "none", 0)
