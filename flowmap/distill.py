"""distill(recipe, data) -> the distilled student."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pluggy
import torch
from torch import Tensor

from . import plugins
from ._types import Role
from .data import Data, Source
from .evaluation import card
from .model import FlowMap
from .objectives import Networks, equipped
from .observers import Observers
from .recipe import Recipe, digest
from .training import checkpoint
from .training.interrupt import Interrupt
from .training.loop import Trainer
from .training.run import Run, write_json

SAVE_SECONDS = 300.0
STUDENT_FILE = "flowmap.json"
"""Beside the student's weights, what they are; written last."""


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
    checkpoints, metrics, `student/` and what the recipe's evaluation writes; None keeps nothing and judges nothing.
    resume: go on from the newest checkpoint in `out`, if it is of the same recipe; a finished run is only evaluated, if
    that is missing. device: CUDA where there is one. dtype: float32 or bfloat16, of frozen weights and of their
    forward passes; what is trained, averages, times and losses are float32.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = None if out is None else Path(out)
    source = _check(recipe, data, path, resume, dtype)
    found = None if path is None else checkpoint.latest(path / "checkpoints", digest(recipe))
    run, watch = Run(path), Observers(pm or plugins.installed())
    run.start(recipe)
    run.preparing()
    try:
        nets = build(recipe, device, dtype, judged=path is not None and recipe.evaluation is not None)
        if path is not None and found is not None and _finished(recipe, found[0], path):
            checkpoint.restore_weights(found[1], _weights(recipe, nets), averaged=True)
        else:
            batches = source.load(recipe.backbone, path, device=device) if isinstance(source, Source) else source
            trained = nets
            if recipe.equips:
                trained = equipped(nets, recipe.equips, batches.batch([0]).to(device))
            _train(recipe, trained, batches, run, watch, device, _weights(recipe, trained), found)
            if path is not None:
                recipe.backbone.save(nets[recipe.result], path / recipe.result)
                write_json(path / recipe.result, STUDENT_FILE, card.facts(recipe, batches))
        if path is not None:
            _judge(recipe, nets, run, path)
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        run.status(state, reason=f"{type(error).__name__}: {error}", resumable=path is not None)
        raise
    finally:
        run.close()
    run.status("finished", stage=len(recipe.stages) - 1)
    return nets[recipe.result]


def evaluate(
    recipe: Recipe,
    run: str | Path,
    *,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Judge the student in the run directory `run` anew, as `recipe.evaluation` says; write to `out`, or to `run`."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    student = Path(run) / "student"
    if recipe.evaluation is None:
        raise RecipeError(f"the recipe {recipe.name or recipe.backbone} has no evaluation: give one that has")
    if not (student / STUDENT_FILE).is_file():
        raise RecipeError(f"{run}: there is no finished student in it; `flowmap distill` makes one")
    if "teacher" in recipe.trains:
        raise RecipeError(
            "the recipe fine-tunes its teacher, which only the run's checkpoints have: remove "
            f"{Path(run) / 'evaluation'}, and distill again with the same `out`"
        )
    teacher = frozenset[Role]({"teacher"})
    nets: dict[Role, FlowMap] = dict((recipe.teacher or recipe.backbone).build(teacher, device=device, dtype=dtype))
    nets["student"] = recipe.backbone.load(student, device=device, dtype=dtype)
    recipe.evaluation(nets, recipe.backbone, Path(out or run))
    if out is None:
        card.write(recipe, Path(run))


def build(recipe: Recipe, device: torch.device, dtype: torch.dtype, *, judged: bool = False) -> Networks:
    """All networks of the recipe; teacher and critic from `recipe.teacher` where that is given.

    judged: a teacher too, if no stage needs one, to compare with.
    """
    roles = recipe.roles | (frozenset[Role]({"teacher"}) if judged else frozenset[Role]())
    student = roles if recipe.teacher is None else roles & frozenset[Role]({"student"})
    nets: dict[Role, FlowMap] = {}
    try:
        for spec, of in ((recipe.backbone, student), (recipe.teacher, roles - student)):
            if spec is not None and of:
                nets |= spec.build(of, device=device, dtype=dtype)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return nets


def _judge(recipe: Recipe, nets: Networks, run: Run, path: Path) -> None:
    if recipe.evaluation is not None and not recipe.evaluation.written(path):
        run.status("evaluating")
        run.close()
        recipe.evaluation(nets, recipe.backbone, path)
    card.write(recipe, path)


def _finished(recipe: Recipe, state: Mapping[str, Any], path: Path) -> bool:
    """Whether the last stage is at its end and the student written."""
    last = len(recipe.stages) - 1
    done = (state["stage"], state["iteration"]) == (last, recipe.stages[last].steps)
    return done and (path / recipe.result / STUDENT_FILE).is_file()


def _check(
    recipe: Recipe, data: Data | Source | None, path: Path | None, resume: str, dtype: torch.dtype
) -> Data | Source:
    """Everything that can be known to be wrong before work starts."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("WORLD_SIZE > 1: this version trains in one process; start it without torchrun")
    if dtype not in (torch.float32, torch.bfloat16):
        raise RecipeError(f"dtype = {dtype}: must be torch.float32 or torch.bfloat16")
    if resume not in ("auto", "never"):
        raise RecipeError(f"resume = {resume!r}: must be 'auto' or 'never'")
    try:
        for spec in filter(None, (recipe.backbone, recipe.teacher)):
            spec.validate()
    except ValueError as error:
        raise RecipeError(str(error)) from error
    source = data if data is not None else recipe.data
    if source is None:
        raise RecipeError("no data: give `data`, or a recipe with one, such as TensorData(x, cond, null)")
    if not isinstance(source, (Data, Source)):
        raise RecipeError(f"data is a {type(source).__name__}: must have `batch(index)` and a length, or `load(...)`")
    if path is not None and path.exists() and not path.is_dir():
        raise RecipeError(f"out = {path}: is a file: must be a directory, or not exist yet")
    if resume == "never" and path is not None and (path / "checkpoints").exists():
        raise RecipeError(f"resume = 'never', but {path} has checkpoints: give an empty directory")
    return source


def _weights(recipe: Recipe, nets: Networks) -> checkpoint.Weights:
    """What the run trains, by role; a teacher that it fine-tunes is frozen no more."""
    if "teacher" in recipe.trains:
        nets["teacher"].thaw()
    return {role: nets[role].trained() for role in sorted(recipe.trains)}


def _train(
    recipe: Recipe,
    nets: Networks,
    data: Data,
    run: Run,
    watch: Observers,
    device: torch.device,
    weights: checkpoint.Weights,
    found: tuple[dict[str, Any], dict[str, Tensor]] | None,
) -> None:
    folder, key = None if run.path is None else run.path / "checkpoints", digest(recipe)
    state, tensors = found or ({"stage": 0, "iteration": 0}, None)
    run.resumed(state["stage"], state["iteration"])
    if tensors is not None:
        checkpoint.restore_weights(tensors, weights)
    for number in range(state["stage"], len(recipe.stages)):
        resumed = tensors if number == state["stage"] else None
        if resumed is None:
            _inherit(recipe, number, weights)
        trainer = Trainer(nets, recipe.stages[number], data, recipe.seed, number, device)
        if resumed is not None:
            checkpoint.restore_trainer(state, resumed, trainer)
        _stage(trainer, state["iteration"] if resumed is not None else 0, run, watch, weights, folder, key)


def _stage(
    trainer: Trainer, first: int, run: Run, watch: Observers, weights: checkpoint.Weights, folder: Path | None, key: str
) -> None:
    stage, saved = trainer.stage, time.monotonic()
    run.stage(trainer.number, stage.method.name, first, stage.steps)
    watch.call("flowmap_train_start", trainer=trainer)
    with Interrupt() as stop:
        for iteration in range(first, stage.steps):
            means = trainer.step(iteration)
            last = iteration + 1 == stage.steps
            logs = None
            if last or iteration % run.every == 0:
                logs = {name: float(mean.value) for name, mean in means.items()}
                watch.call("flowmap_step_end", trainer=trainer, iteration=iteration, logs=logs)
            run.step(trainer.number, iteration, logs)
            if folder is not None and (last or stop.asked or time.monotonic() - saved > SAVE_SECONDS):
                checkpoint.save(folder, trainer, weights, iteration + 1, key)
                saved = time.monotonic()
            if stop.asked:
                where = f"in stage {trainer.number}, after {iteration + 1} of {stage.steps} iterations"
                raise KeyboardInterrupt(
                    where if folder is None else f"{where}; saved: the same call goes on from there"
                )
    trainer.finish()
    watch.call("flowmap_train_end", trainer=trainer)
    run.close()


@torch.no_grad()
def _inherit(recipe: Recipe, number: int, weights: Mapping[Role, Mapping[str, Tensor]]) -> None:
    """A critic starts as the teacher: as the fine-tuned one, where an earlier stage trained it."""
    before = [stage.method for stage in recipe.stages[:number]]
    new = "critic" in recipe.stages[number].method.trains and not any("critic" in m.trains for m in before)
    if new and any("teacher" in m.trains for m in before):
        for name, p in weights["teacher"].items():  # what the critic is equipped with stays as it is
            weights["critic"][name].copy_(p)
