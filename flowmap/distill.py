"""distill(recipe, data) -> the distilled student."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import pluggy
import torch
from torch import Tensor

from . import plugins
from ._types import Role
from .data import Data, Source
from .model import FlowMap
from .observers import Observers
from .objectives import Networks
from .recipe import Recipe, digest
from .training import checkpoint
from .training.loop import Trainer
from .training.run import Run

SAVE_SECONDS = 300.0


class RecipeError(ValueError):
    """The recipe cannot be run; nothing was started."""


def distill(
    recipe: Recipe,
    data: Data | Source | None = None,
    *,
    out: str | Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    pm: pluggy.PluginManager | None = None,
) -> FlowMap:
    """Run the stages of `recipe` and return the student (or the teacher, of a recipe without a student), averaged.

    data: the batches, or where they come from; the recipe's own by default. out: a run directory, which gets
    checkpoints, metrics and `student/`; None keeps nothing. resume: go on from the newest checkpoint in `out`, if it
    is of the same recipe. device: CUDA where there is one. dtype: of frozen weights and of the forward passes;
    adapters, averages, times and losses are float32.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = None if out is None else Path(out)
    source = _check(recipe, data, path, resume)
    run, watch = Run(path), Observers(pm or plugins.installed())
    run.start(recipe)
    try:
        nets = build(recipe, device, dtype)
        batches = source.load(recipe.backbone, path, device=device) if isinstance(source, Source) else source
        _train(recipe, nets, batches, run, watch, device, resume)
        if path is not None:
            recipe.backbone.save(nets[recipe.result], path / recipe.result)
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        run.status(state, reason=f"{type(error).__name__}: {error}", resumable=path is not None)
        raise
    finally:
        run.close()
    run.status("finished", stage=len(recipe.stages) - 1)
    return nets[recipe.result]


def build(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Networks:
    """All networks of the recipe; teacher and critic from `recipe.teacher` where that is given."""
    if recipe.teacher is None:
        return recipe.backbone.build(recipe.roles, device=device, dtype=dtype)
    student = frozenset[Role]({"student"})
    nets = dict(recipe.backbone.build(recipe.roles & student, device=device, dtype=dtype))
    return nets | dict(recipe.teacher.build(recipe.roles - student, device=device, dtype=dtype))


def _check(recipe: Recipe, data: Data | Source | None, path: Path | None, resume: str) -> Data | Source:
    """Everything that can be known to be wrong before work starts."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("WORLD_SIZE > 1: this version trains in one process; start it without torchrun")
    if resume not in ("auto", "never"):
        raise RecipeError(f"resume = {resume!r}: must be 'auto' or 'never'")
    source = data if data is not None else recipe.data
    if source is None:
        raise RecipeError("no data: give `data`, or a recipe with one, such as TensorData(x, cond, null)")
    if not isinstance(source, (Data, Source)):
        raise RecipeError(f"data is a {type(source).__name__}: must have `batch(index)` and a length, or `load(...)`")
    if resume == "never" and path is not None and (path / "checkpoints").exists():
        raise RecipeError(f"resume = 'never', but {path} has checkpoints: give an empty directory")
    return source


def _train(
    recipe: Recipe, nets: Networks, data: Data, run: Run, watch: Observers, device: torch.device, resume: str
) -> None:
    for role in sorted(recipe.trains):
        nets[role].thaw()
    weights = {role: nets[role].trained() for role in sorted(recipe.trains)}
    folder, key = None if run.path is None else run.path / "checkpoints", digest(recipe)
    found = checkpoint.latest(folder, key) if folder is not None and resume == "auto" else None
    state, tensors = found or ({"stage": 0, "iteration": 0}, None)
    if tensors is not None:
        checkpoint.restore_weights(tensors, weights)
        run.resumed(state["stage"], state["iteration"])
    for number in range(state["stage"], len(recipe.stages)):
        resumed = tensors if number == state["stage"] else None
        if resumed is None:
            _inherit(recipe, number, weights)
        trainer = Trainer(nets, recipe.stages[number], data, recipe.seed, number, device)
        if resumed is not None:
            checkpoint.restore_trainer(state, resumed, trainer)
        _stage(trainer, state["iteration"] if resumed is not None else 0, run, watch, weights, folder, key)


def _stage(
    trainer: Trainer, first: int, run: Run, watch: Observers, weights: Any, folder: Path | None, key: str
) -> None:
    stage, saved = trainer.stage, time.monotonic()
    run.stage(trainer.number, stage.method.name, first, stage.steps)
    watch.call("flowmap_train_start", trainer=trainer)
    for iteration in range(first, stage.steps):
        means = trainer.step(iteration)
        last = iteration + 1 == stage.steps
        logs = None
        if last or iteration % run.every == 0:
            logs = {name: float(mean.value) for name, mean in means.items()}
            watch.call("flowmap_step_end", trainer=trainer, iteration=iteration, logs=logs)
        run.step(trainer.number, iteration, logs)
        if folder is not None and (last or time.monotonic() - saved > SAVE_SECONDS):
            checkpoint.save(folder, trainer, weights, iteration + 1, key)
            saved = time.monotonic()
    trainer.finish()
    watch.call("flowmap_train_end", trainer=trainer)
    run.close()


@torch.no_grad()
def _inherit(recipe: Recipe, number: int, weights: Mapping[Role, Mapping[str, Tensor]]) -> None:
    """A critic starts as the teacher: as the fine-tuned one, where an earlier stage trained it."""
    before = [stage.method for stage in recipe.stages[:number]]
    new = "critic" in recipe.stages[number].method.trains and not any("critic" in m.trains for m in before)
    if new and any("teacher" in m.trains for m in before):
        for name, p in weights["critic"].items():
            p.copy_(weights["teacher"][name])
