"""What `drift` measures: a finished run, its networks at a stage's end, and where its chunks begin."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path

import torch
from attrs import field, frozen, validators

from flowmap import FlowMap, Recipe
from flowmap.cli import recipes
from flowmap.evaluation import QualityCurve
from flowmap.objectives import Networks
from flowmap.recipe import describe
from flowmap.training.ranks.networks import build
from flowmap.training.store import checkpoint


class RunError(ValueError):
    """This run cannot be measured."""


@frozen
class Settings:
    """steps: of student and teacher. samples: of each seed, in equal numbers everywhere."""

    steps: tuple[int, ...] = (4, 32)
    seeds: tuple[int, ...] = field(default=(0, 1, 2, 3, 4), validator=validators.min_len(1))
    samples: int = field(default=64, validator=validators.ge(2))


FULL, SMOKE = Settings(), Settings(steps=(1, 2), seeds=(0, 1), samples=3)


@frozen
class Finished:
    """A run, the recipe that it is of, and the evaluation whose prompts, shape and guidance are taken."""

    path: Path
    recipe: Recipe
    curve: QualityCurve
    digest: str

    @classmethod
    def of(cls, path: Path) -> Finished:
        try:
            said = json.loads((path / "recipe.json").read_text())
        except OSError:
            raise RunError(f"{path}: there is no recipe.json in it, so it is no run directory") from None
        recipe = recipes.load(said["name"])
        if len(recipe.stages) < 2:
            raise RunError(f"{path}: the recipe {recipe.name!r} has one stage; there is no before and after")
        if describe(recipe.backbone) != said["backbone"]:
            raise RunError(f"{path}: the backbone of the recipe {recipe.name!r} is not the one of this run any more")
        if not isinstance(recipe.evaluation, QualityCurve):
            raise RunError(f"{path}: the recipe {recipe.name!r} has no QualityCurve to take prompts from")
        return cls(path, recipe, recipe.evaluation, said["digest"])

    def networks(self, device: torch.device) -> Networks:
        nets = build(self.recipe, device, torch.float32, judged=True)
        if "teacher" in self.recipe.trains:
            nets["teacher"].thaw()
        return nets

    def restore(self, nets: Networks, number: int) -> None:
        """The networks as they were at the end of a stage."""
        found = checkpoint.stage_end(self.path / "checkpoints", number, self.digest)
        roles = sorted(self.recipe.trains & {"student", "teacher"})
        checkpoint.restore_weights(found, {role: nets[role].trained() for role in roles}, averaged=True)


def edges(u: FlowMap, latents: int, frames: int) -> tuple[int, ...]:
    """Where chunks begin in video frames, and the end: the first latent frame is one, each other as many as it is."""
    chunks = u.chunks(latents)
    done = accumulate(chunks if len(chunks) > 1 else (1,) * latents)
    each = (frames - 1) // (latents - 1)
    return (0, *(1 + (n - 1) * each for n in done))
