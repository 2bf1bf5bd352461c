"""Teacher and student on the same noise and prompts, asked while they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from attrs import frozen
from torch import Tensor

from .._types import Latent, Rng, select
from ..guidance import Guided
from ..model import HistoryNoise, Kind, Sampling, guided_twice
from ..objectives import Guides, Networks
from ..recipe import Recipe
from ..rollout import STEPS, sample
from ..times import grid_of
from . import card
from .records import Point
from .subjects import Subjects

KEY = 0x9E71E  # apart from every key of training, which is longer


@frozen(eq=False)
class Paired:
    """Samples of every prompt of `subjects` for every seed, prompt by prompt; `batch` of them in a call."""

    recipe: Recipe
    nets: Networks
    subjects: Subjects
    seeds: tuple[int, ...]
    batch: int
    device: torch.device
    history_noise: HistoryNoise = 0.0  # of the student's chunks, as it has learnt to see them so far

    def point(self, model: Literal["teacher", "student"], steps: int, learnt: Kind) -> Point:
        """How that model is sampled; learnt: how the student is, by the method that trains it."""
        if model == "student":
            return Point(model, learnt, steps, steps)
        kind = self.recipe.spec_of("teacher").sampling().kind
        return Point(model, kind, steps, steps * (2 if kind == "euler" and self.guidance != 1.0 else 1))

    @property
    def guidance(self) -> float:
        """Of the teacher: the evaluation's or, without one, what the student learns."""
        if guided_twice(self.nets["teacher"].guidance, 2.0) is not None or not self.subjects.null:
            return 1.0
        if isinstance(self.recipe.evaluation, Guides):
            return self.recipe.evaluation.guides.get("teacher", 1.0)
        return card.guidance(self.recipe) or 1.0

    @property
    def prompts(self) -> list[str]:
        """Of every sample."""
        return [prompt for prompt in self.subjects.prompts for _ in self.seeds]

    @torch.no_grad()
    def made(self, point: Point) -> Latent:
        """[prompts · seeds, F, C, H, W] on the CPU."""
        u, s, count = self.nets[point.model], self.subjects, len(self.subjects.prompts)
        if point.sampler == "euler" and self.guidance != 1.0:
            u = Guided(u, self.guidance, {name: value.to(self.device) for name, value in s.null.items()})
        grid = grid_of(Sampling(), point.steps, self.recipe.backbone.shift, u.boundary)
        noise = torch.stack([self._noise(seed, count) for seed in self.seeds], 1).flatten(0, 1)
        rows = torch.arange(count).repeat_interleave(len(self.seeds))
        noisy = self.history_noise if point.model == "student" else None
        found = []
        for part in torch.arange(len(rows)).split(self.batch):
            cond = {name: value.to(self.device) for name, value in select(s.cond, rows[part]).items()}
            z = noise[part].to(self.device)
            found.append(sample(u, z, cond, grid=grid, step=STEPS[point.sampler], history_noise=noisy).cpu())
        return torch.cat(found)

    def _noise(self, seed: int, count: int) -> Tensor:
        return Rng.seeded(KEY, seed).noise_like(torch.zeros(count, *self.subjects.shape))


@contextmanager
def undisturbed(nets: Networks, device: torch.device) -> Iterator[None]:
    """While entered, networks are asked and not trained; neither their modes nor torch's randomness keep a trace."""
    modules = [module for u in nets.values() for module in u.modules()]
    modes = [module.training for module in modules]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
