"""The training loop; there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from attrs import define, field
from torch import nn

from .._types import Batch, Mean, Rng, Role, Shared
from ..data import Data, indices
from ..method import Update
from ..objectives import Networks
from ..recipe import AdamW, Stage
from .ema import Average

MAX_SKIPPED = 5  # optimiser steps in a row that a role may skip for a gradient that is not finite


class TrainingError(Exception):
    """Training cannot go on; the run's checkpoints are intact."""


@define
class Trainer:
    """One stage. `step` is an iteration: every update of the method, in order, each one optimiser step of its role.

    Randomness is keyed by (seed, stage number, iteration, update, term) and the place in the global batch.
    """

    nets: Networks
    stage: Stage
    data: Data
    seed: int = 0
    number: int = 0  # of the stage in its recipe
    device: torch.device = torch.device("cpu")
    trained: Mapping[Role, Mapping[str, nn.Parameter]] = field(init=False)
    optimizers: Mapping[Role, torch.optim.Optimizer] = field(init=False)
    averages: dict[Role, Average] = field(factory=dict, init=False)
    shared: Shared = field(factory=Shared, init=False)
    skipped: dict[Role, int] = field(factory=dict, init=False)  # in a row

    def __attrs_post_init__(self) -> None:
        roles = sorted(self.stage.method.trains)
        self.trained = {role: self.nets[role].trained() for role in roles}
        for role, trained in self.trained.items():
            if not trained:
                raise TrainingError(f"{self.stage.method.name} trains the {role}, which has nothing to train")
        self.optimizers = {role: _optimizer(_settings(self.stage, role), self.trained[role]) for role in roles}
        if self.stage.ema is not None:
            self.averages = {r: Average.of(self.trained[r], self.stage.ema) for r in roles if r != "critic"}

    def step(self, iteration: int) -> dict[str, Mean]:
        """One iteration; its logs as means, by `role/name`."""
        index = indices(len(self.data), self.stage.batch, iteration, self.seed, self.number)
        logs: dict[str, Mean] = {}
        self.shared.iteration = iteration
        for number, update in enumerate(self.stage.method.updates):
            if not update.due(iteration):
                continue
            for positions in _micro(self.stage):
                batch = self.data.batch([index[p] for p in positions]).to(self.device)
                key = (self.seed, self.number, iteration, number)
                for name, mean in self._backward(update, batch, key, positions).items():
                    logs[name] = logs[name] + mean if name in logs else mean
            logs |= self._apply(update.role, iteration)
        self.shared.next()
        return logs

    def finish(self) -> None:
        """The stage is over: its averages take the place of the weights."""
        for role, average in self.averages.items():
            average.copy_to(self.trained[role])

    def _backward(
        self, update: Update, batch: Batch, key: tuple[int, ...], positions: tuple[int, ...]
    ) -> dict[str, Mean]:
        logs: dict[str, Mean] = {}
        for term, (weight, objective) in enumerate(update.terms):  # one graph at a time
            rng = Rng((*key, term), positions, self.stage.batch)
            loss = objective(self.nets, batch, rng, self.shared)
            (weight * len(batch) / self.stage.batch * loss.value).backward()
            for short, mean in loss.logs.items():
                name = f"{update.role}/{short}"
                logs[name] = logs[name] + mean if name in logs else mean
        return logs

    def _apply(self, role: Role, iteration: int) -> dict[str, Mean]:
        settings, optimizer, trained = _settings(self.stage, role), self.optimizers[role], self.trained[role]
        lr = rate(settings, iteration, self.stage.steps)
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), settings.clip)
        if finite := bool(norm.isfinite()):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            if role in self.averages:
                self.averages[role].update(trained, iteration)
        self.skipped[role] = 0 if finite else self.skipped.get(role, 0) + 1
        optimizer.zero_grad(set_to_none=True)
        if self.skipped[role] >= MAX_SKIPPED:
            raise TrainingError(
                f"the {role}'s gradient was not finite {MAX_SKIPPED} times in a row, last at iteration {iteration} of "
                f"stage {self.number} ({self.stage.method.name}): lower its lr ({settings.lr}) or look at the data"
            )
        scalar = {"gradient_norm": norm, "lr": torch.tensor(lr), "skipped": torch.tensor(float(not finite))}
        return {f"{role}/{name}": Mean.of(value.reshape(1)) for name, value in scalar.items()}


def rate(settings: AdamW, iteration: int, steps: int) -> float:
    """The learning rate of an iteration, counted from 0."""
    warm = min(1.0, (iteration + 1) / (settings.warmup + 1))
    if settings.schedule == "constant":
        return settings.lr * warm
    done = iteration / max(1, steps)
    return settings.lr * warm * (settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def _settings(stage: Stage, role: Role) -> AdamW:
    settings = stage.optimizer_of(role)
    assert settings is not None  # Stage checks it
    return settings


def _optimizer(settings: AdamW, trained: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        list(trained.values()), settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True
    )


def _micro(stage: Stage) -> list[tuple[int, ...]]:
    """The global batch in pieces of at most `micro`."""
    size = stage.micro or stage.batch
    return [tuple(range(i, min(i + size, stage.batch))) for i in range(0, stage.batch, size)]
