"""The training loop; there is one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field
from torch import nn

from .._types import Batch, Mean, Rng, Role, Shared
from ..adamw8bit import AdamW8bit, Optimizer8bit
from ..data import Data, ReadsAhead, draw
from ..faults import reach
from ..method import Update
from ..muon import Muon, MuonAdamW
from ..objectives import Networks, taught, within
from ..pieces import in_pieces
from ..recipe import AdamW, Stage
from .ema import Average
from .micro import MicroBatch, micro_batches
from .progress import nonfinite
from .ranks.agree import during, rank, ranks
from .ranks.reduction import add_up, clip, norm, read
from .skips import MAX_SKIPPED, Skips
from .store.status import NONFINITE


class TrainingError(Exception):
    """Training cannot go on; the run's checkpoints are intact."""


@define
class Trainer:
    """One stage. `step` is an iteration: every update of the method, in order, each one optimiser step of its role.

    Randomness is keyed by (seed, stage number, iteration, update, term) and the place in the global batch. Of several
    ranks each takes its part of every global micro-batch, and all make the same calls; those of a context take the same
    part, and of each one's loss an equal share counts.

    A step waits for no device: whether it was skipped, since a loss or a gradient of some rank was not finite or no
    sample counts, is decided and counted there. `read` looks.
    """

    nets: Networks
    stage: Stage
    data: Data
    seed: int = 0
    number: int = 0  # of the stage in its recipe
    device: torch.device = torch.device("cpu")
    context: int = 1  # neighbouring ranks that have the same samples and share their tokens
    trained: Mapping[Role, Mapping[str, nn.Parameter]] = field(init=False)
    optimizers: Mapping[Role, torch.optim.Optimizer] = field(init=False)
    averages: dict[Role, Average] = field(factory=dict, init=False)
    shared: Shared = field(factory=Shared, init=False)
    _skips: dict[Role, Skips] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        if self.stage.batch % self._parts:
            raise TrainingError(f"batch = {self.stage.batch} does not divide over {self._parts} processes")
        self.shared.ranks = self._parts
        roles = sorted(self.stage.method.trains)
        self.trained = {role: self.nets[role].trained() for role in roles}
        for role, trained in self.trained.items():
            if not trained:
                raise TrainingError(f"{self.stage.method.name} trains the {role}, which has nothing to train")
        self.optimizers = {role: _optimizer(_settings(self.stage, role), self.trained[role]) for role in roles}
        if self.stage.ema is not None:
            self.averages = {r: Average.of(self.trained[r], self.stage.ema) for r in roles if r != "critic"}
        self._skips = {role: Skips.of(self.stage.batch, self.device) for role in roles}

    def step(self, iteration: int, *, apply: bool = True) -> dict[str, Mean]:
        """One iteration; its logs as means over this rank's samples, by `role/name`: see `read`.

        apply: False leaves the optimisers' steps out, for who counts its calls: gradients stay, and add up.
        """
        if isinstance(self.data, ReadsAhead):
            self.data.expect([*self._reads(iteration), *self._reads(iteration + 1)])
        index = draw(self.data, self.stage.batch, iteration, self.seed, self.number)
        logs: dict[str, Mean] = {}
        calls = self._calls(iteration)
        self.shared.iteration = iteration
        for number, update in enumerate(self.stage.method.updates):
            if number not in calls:
                continue
            during(f"the {update.role}'s update in iteration {iteration} of {self.where}")
            self._skips[update.role].begin()
            for positions, terms in calls[number]:
                reach("data.next")
                batch = self.data.batch([index[p] for p in positions]).to(self.device)
                key = (self.seed, self.number, iteration, number)
                for name, mean in self._backward(update, terms, batch, key, positions).items():
                    logs[name] = logs[name] + mean if name in logs else mean
            if apply:
                logs |= self._apply(update.role, iteration)
                self.shared.forget(self._skips[update.role].skipped, update.role, number)
        during(f"the end of iteration {iteration} of {self.where}")
        self.shared.next()
        return logs

    def _reads(self, iteration: int) -> Iterator[list[int]]:
        """The batches that an iteration asks for, in that order."""
        index = draw(self.data, self.stage.batch, iteration, self.seed, self.number)
        for calls in self._calls(iteration).values():
            for positions, _ in calls:
                yield [index[p] for p in positions]

    def _calls(self, iteration: int) -> Mapping[int, Sequence[MicroBatch]]:
        """This rank's micro-batches in an iteration, by update."""
        key = (self.seed, self.number, iteration)
        return micro_batches(self.stage, iteration, key, rank() // self.context, self._parts)

    @property
    def _parts(self) -> int:
        """How many parts the batch is in."""
        return ranks() // self.context

    def read(self, logs: Mapping[str, Mean], iteration: int) -> dict[str, float]:
        """The logs of an iteration as numbers, over all ranks; every rank must ask.

        A TrainingError where `MAX_SKIPPED` steps of a role in a row came to nothing since the last look: so the run
        stops by as many iterations late as there are between looks, with weights that no skipped step has changed.
        Shares of what was not finite are of the stage so far, and told where they are not 0.
        """
        during(f"the record of iteration {iteration} of {self.where}")
        found = read(logs, {f"/{role}": skips.counts[1] for role, skips in self._skips.items()}, self.device)
        for role, skips in self._skips.items():
            if found.pop(f"/{role}") >= MAX_SKIPPED:
                lr, when = _settings(self.stage, role).lr, f"iteration {iteration} of {self.where}"
                raise TrainingError(skips.origin(self._index).told(role, lr, when))
            skips.looked()
        return {name: value for name, value in found.items() if value or not nonfinite(name)}

    @property
    def where(self) -> str:
        """For messages."""
        return f"stage {self.number} ({self.stage.method.name})"

    def _index(self, iteration: int) -> Sequence[int]:
        """The samples of the global batch, in the data."""
        return draw(self.data, self.stage.batch, iteration, self.seed, self.number)

    @property
    def skipped(self) -> dict[Role, int]:
        """Steps in a row of a role that came to nothing. Waits for the device."""
        return {role: skips.in_a_row for role, skips in self._skips.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it besides tensors; JSON."""
        nonfinite = {role: skips.state() for role, skips in self._skips.items()}
        return {"means": self.shared.state(), "skipped": self.skipped, "nonfinite": nonfinite}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.shared.load(state["means"])
        for role, count in state["skipped"].items():
            self._skips[role].restore(count, state.get("nonfinite", {}).get(role, {}))

    def finish(self) -> None:
        """The stage is over: its averages take the place of the weights."""
        for role, average in self.averages.items():
            average.copy_to(self.trained[role])

    def _backward(
        self, update: Update, terms: Sequence[int], batch: Batch, key: tuple[int, ...], positions: tuple[int, ...]
    ) -> dict[str, Mean]:
        """A term of weight 0 is called, and no part of the step."""
        logs: dict[str, Mean] = {}
        for term in terms:  # one graph at a time
            weight, objective = update.terms[term]
            rng = Rng((*key, term), positions, self.stage.batch)
            with self.shared.at(update.role, key[-1], term):
                loss = objective(taught(self.nets, objective), batch, rng, self.shared)
            if weight:
                (weight * len(batch) / (self.stage.batch * self.context) * loss.value).backward()
                self._skips[update.role].saw(loss, term, positions)
            for short, mean in loss.logs.items():
                name = f"{update.role}/{short}"
                logs[name] = logs[name] + mean if name in logs else mean
        return logs

    def _apply(self, role: Role, iteration: int) -> dict[str, Mean]:
        """The optimiser's step, unless a loss or the gradient was not finite, on any rank, or no sample counts."""
        settings, optimizer, trained = _settings(self.stage, role), self.optimizers[role], self.trained[role]
        skips = self._skips[role]
        lr = rate(settings, iteration, self.stage.steps)
        add_up(list(trained.values()))
        gradients = [p.grad for p in trained.values() if p.grad is not None]
        length, sums = norm(gradients, skips.sums)
        clip(gradients, length, settings.clip)
        skip = skips.end(iteration, length, sums)
        for group in optimizer.param_groups:
            group["lr"] = rate(settings, iteration, self.stage.steps, group.get("initial_lr"))
        optimizer.found_inf = skip  # type: ignore[attr-defined]  # what fused kernels read: not 0 changes nothing
        optimizer.step()
        reach(f"{role}.after")
        if role in self.averages:
            self.averages[role].update(trained, iteration, skip)
            reach("ema.after")
        optimizer.zero_grad(set_to_none=True)
        scalar = {"gradient_norm": length, "lr": torch.tensor(lr), "skipped": skip}
        logs = {name: Mean.of(value.reshape(1)) for name, value in scalar.items()}
        return within(role, logs | within(NONFINITE, skips.nonfinite))


def rate(settings: AdamW, iteration: int, steps: int, lr: float | None = None) -> float:
    """The learning rate of an iteration, counted from 0; lr: in place of the settings' own."""
    lr = settings.lr if lr is None else lr
    warm = min(1.0, (iteration + 1) / (settings.warmup + 1))
    if settings.schedule == "constant":
        return lr * warm
    done = iteration / max(1, steps)
    return lr * warm * (settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def _settings(stage: Stage, role: Role) -> AdamW:
    settings = stage.optimizer_of(role)
    assert settings is not None  # Stage checks it
    return settings


def _optimizer(settings: AdamW, trained: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Tensors in pieces, and tensors that every rank has, are stepped each on their own."""
    if isinstance(settings, Muon):
        return MuonAdamW(trained.values(), settings)
    pieces, whole = ([p for p in trained.values() if in_pieces(p) == sharded] for sharded in (True, False))
    groups = [{"params": parameters} for parameters in (pieces, whole) if parameters]
    if isinstance(settings, AdamW8bit):
        return Optimizer8bit(groups, settings)
    return torch.optim.AdamW(groups, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True)
