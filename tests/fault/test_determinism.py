"""R16: the same recipe gives the same result, to the bit, whatever else goes on: twice, elsewhere, watched or not."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen

from flowmap import FlowMapSpec, Recipe, distill, hookimpl
from flowmap.data.prefetch import Prefetch
from flowmap.objectives import Networks
from flowmap.plugins import manager
from flowmap.training.run import Run
from tests import runs
from tests.fault import harness
from tests.toys import Toy, data

pytestmark = pytest.mark.row("R16")
CAUSAL = evolve(harness.recipe(), backbone=Toy(causal=True))


def disturb() -> None:
    """All the randomness there is beside flowmap's own."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(12345)
    torch.randn(1000)


class Nosy:
    """Draws, samples with the student, keeps gradients: what an observer might do."""

    @hookimpl
    def flowmap_train_start(self, trainer: Any) -> None:
        disturb()

    @hookimpl
    def flowmap_step_end(self, trainer: Any, iteration: int, logs: Any) -> None:
        disturb()
        z, cond = Toy().example()
        if "student" in trainer.nets:
            trainer.nets["student"](z, torch.ones(2), torch.zeros(2), cond).sum().item()


class Quiet:
    """A tracker that takes everything."""

    def log(self, stage: int, iteration: int, values: object) -> None: ...

    def close(self) -> None: ...


class Tracks:
    @hookimpl
    def flowmap_trackers(self) -> dict[str, Callable[[Path], Quiet]]:
        return {"quiet": lambda path: Quiet()}


@frozen
class Previews:
    """An evaluation that draws and writes."""

    def __call__(self, nets: Networks, backbone: FlowMapSpec, out: Path) -> None:
        disturb()
        nets["student"](torch.zeros(2, 4, 2, 2, 2), torch.ones(2), torch.zeros(2), {"text": torch.randn(2, 3)})
        (out / "preview.txt").write_text("seen")

    def written(self, out: Path) -> bool:
        return (out / "preview.txt").exists()

    def quick(self) -> Previews:
        return self


def run(out: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    """`recipe` in one of the ways that must make no difference."""
    plugins, options = [], {}
    batches: Any = data()
    if variant == "observed":
        plugins.append(Nosy())
    if variant == "tracked":
        plugins.append(Tracks())
        options["track"] = ["quiet"]
    if variant == "previews":
        recipe = evolve(recipe, evaluation=Previews())
    if variant.startswith("every "):
        monkeypatch.setattr(
            sys.modules["flowmap.distill"], "Run", functools.partial(Run, every=int(variant.split()[1]))
        )
    if variant.startswith("workers "):
        batches = Prefetch(data(), workers=int(variant.split()[1]))
    if variant == "other seeds":
        disturb()
    minutes = 60.0 if variant == "few saves" else 0.0
    pm = manager(*plugins, entry_points=False)
    distill(recipe, batches, out=out, save_minutes=minutes, device="cpu", pm=pm, **options)


VARIANTS = (
    *("again", "observed", "tracked", "previews", "every 1", "every 7", "workers 1", "workers 2"),
    *("other seeds", "few saves"),
)
RECIPES = {"adapters": harness.recipe(), "causal": CAUSAL}


@pytest.fixture(scope="module", params=RECIPES)
def first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, str, str]:
    out = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        run(out, RECIPES[request.param], patch, "")
    return RECIPES[request.param], harness.final_hash(out), str(runs.status(out)["hash"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_to_the_bit(
    variant: str, first: tuple[Recipe, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole, trained = first
    run(tmp_path, recipe, monkeypatch, variant)
    assert runs.status(tmp_path)["hash"] == trained
    assert harness.final_hash(tmp_path) == whole


def test_the_same_in_another_process(first: tuple[Recipe, str, str], tmp_path: Path) -> None:
    if first[0] is not RECIPES["adapters"]:
        pytest.skip("the harness has one recipe")
    assert harness.finished(tmp_path / "run") == first[1]


def test_another_seed_is_another_result(first: tuple[Recipe, str, str], tmp_path: Path) -> None:
    """The hash would see a difference."""
    with pytest.MonkeyPatch.context() as patch:
        run(tmp_path, evolve(first[0], seed=1), patch, "")
    assert runs.status(tmp_path)["hash"] != first[2]
    assert harness.final_hash(tmp_path) != first[1]
