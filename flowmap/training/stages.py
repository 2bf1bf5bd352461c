"""A recipe's stages, one after the other, from the start or from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._types import Mean, Role
from ..data import Data
from ..objectives import Networks
from ..recipe import Recipe
from .interrupt import Interrupt, Preempted
from .loop import Trainer, TrainingError
from .ranks.agree import during
from .run import Run
from .saving import Saves
from .store import checkpoint
from .store.checkpoint import SaveError

if TYPE_CHECKING:
    from ..observers import Observers


def train(
    recipe: Recipe,
    nets: Networks,
    data: Data,
    run: Run,
    watch: Observers,
    saves: Saves,
    device: torch.device,
    weights: checkpoint.Weights,
    found: checkpoint.Found | None,
    context: int = 1,
) -> None:
    stage, iteration = (0, 0) if found is None else (found.stage, found.iteration)
    run.resumed(stage, iteration)
    watch.resumed(stage, iteration)
    if found is not None:
        saves.newest = found.path
        checkpoint.restore_weights(found, weights)
    for number in range(stage, len(recipe.stages)):
        resumed = found if number == stage else None
        if resumed is None:
            _inherit(recipe, number, weights)
        trainer = Trainer(nets, recipe.stages[number], data, recipe.seed, number, device, context)
        if resumed is not None:
            checkpoint.restore_trainer(resumed, trainer)
        final = number + 1 == len(recipe.stages)
        first = iteration if resumed is not None else 0
        try:
            _stage(trainer, first, run, watch, weights, saves, final=final)
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):  # which saved before, or is to leave at once
                saves.leave()
            raise


def _stage(
    trainer: Trainer, first: int, run: Run, watch: Observers, weights: checkpoint.Weights, saves: Saves, *, final: bool
) -> None:
    stage = trainer.stage
    run.stage(trainer.number, stage.method.name, first, stage.steps, stage.batch)
    watch.train_start(trainer)
    with Interrupt() as stop:
        for iteration in range(first, stage.steps):
            trainer.shared.measuring = iteration == 0
            means = trainer.step(iteration)
            last = iteration + 1 == stage.steps
            logs = None
            if last or iteration % run.every == 0:
                logs = _read(trainer, means, iteration, saves)
                watch.step_end(trainer, iteration, logs)
            run.step(trainer.number, iteration, logs)
            for told in _rounded(trainer, logs or {}):
                run.note(told)
            run.previewed(watch.after(trainer, iteration))
            stopping, due = saves.agreed(stop.asked)
            if last or stopping or due:
                during(f"the checkpoint after {iteration + 1} iterations of {trainer.where}")
                end = stopping or (last and final)
                saves.save(trainer, weights, iteration + 1, last=end, wait=last or stopping)
            if last:  # a signal while the stage's end was saved would find no iteration after it
                stopping, _ = saves.agreed(stop.asked)
            if stopping:
                where = f"in stage {trainer.number}, after {iteration + 1} of {stage.steps} iterations"
                raise Preempted(
                    where if saves.folder is None else f"{where}; saved: the same call goes on from there", stop.number
                )
    trainer.finish()
    run.previewed(watch.train_end(trainer))
    run.stage_over()
    during(f"what comes after {trainer.where}")


def _read(trainer: Trainer, means: Mapping[str, Mean], iteration: int, saves: Saves) -> dict[str, float]:
    try:
        return trainer.read(means, iteration)
    except TrainingError as error:  # the same on all ranks
        with suppress(SaveError):
            saves.wait()
        kept = "" if saves.newest is None else f"; the last good checkpoint is {saves.newest.name}"
        raise TrainingError(f"{error}{kept}") from None


def _rounded(trainer: Trainer, logs: Mapping[str, float]) -> Iterator[str]:
    """What rounding does to the target of each role, in a sentence, where that was measured."""
    for role in trainer.trained:
        share = logs.get(f"{role}/rounding", math.nan)
        if math.isfinite(share):
            kind = str(trainer.nets[role].precision).removeprefix("torch.")
            advice = "; a difference of larger h is rounded less" if share > 0.25 else ""
            yield (
                f"{trainer.where}: the {role} computes in {kind}, which rounds the derivative in its target by "
                f"{share**0.5:.2g} of what there is to learn{advice}"
            )


@torch.no_grad()
def _inherit(recipe: Recipe, number: int, weights: Mapping[Role, Mapping[str, Tensor]]) -> None:
    """A critic starts as the teacher: as the fine-tuned one, where an earlier stage trained it. One of another spec
    starts as that says."""
    if recipe.spec_of("critic") != recipe.spec_of("teacher"):
        return
    before = [stage.method for stage in recipe.stages[:number]]
    new = "critic" in recipe.stages[number].method.trains and not any("critic" in m.trains for m in before)
    if new and any("teacher" in m.trains for m in before):
        for name, p in weights["teacher"].items():  # what the critic is equipped with stays as it is
            weights["critic"][name].copy_(p)
