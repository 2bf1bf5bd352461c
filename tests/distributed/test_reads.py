"""A step asks no device for a number: it runs on tensors that have none, where asking is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import frozen
from flowmap_far import Far
from flowmap_wan.spec import WanSpec
from flowmap_wan21 import Wan21

from flowmap import Batch, Recipe, Stage
from flowmap._types import Role, Shared
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.objectives import Loss, Networks
from flowmap.training.loop import Trainer
from tests.distributed.cases import mixture, on_policy, recipe

META = torch.device("meta")


@pytest.fixture(autouse=True)
def step(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The optimiser's kernel, which needs numbers, is passed over; it is given a flag on the device."""
    seen: list[Any] = []

    class Passing(torch.optim.Optimizer):
        def __init__(self, groups: Any, *settings: Any, **more: Any) -> None:
            super().__init__(groups, {"lr": 0.0})

        def step(self, closure: Any = None) -> None:
            seen.append(self.found_inf)  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.optim, "AdamW", Passing)
    return seen


def run(made: Recipe) -> Trainer:
    stage = made.stages[-1]
    nets = made.backbone.build(made.roles, device=META, dtype=torch.float32)
    assert made.data is not None and isinstance(stage, Stage)
    trainer = Trainer(nets, stage, made.data, device=META)  # type: ignore[arg-type]
    for iteration in range(2):
        trainer.step(iteration)
    return trainer


CASES: list[tuple[WanSpec, Method, bool]] = [
    (Wan21(), anyflow.forward(), True),
    (Wan21(), on_policy(), False),
    (Wan21(), mixture(), True),
    (Far(), anyflow.forward(), False),
    (Far(), on_policy(), True),
]


@pytest.mark.parametrize(("spec", "method", "lora"), CASES, ids=lambda c: getattr(c, "name", None))
def test_a_step_waits_for_nothing(spec: WanSpec, method: Method, lora: bool, step: list[Any]) -> None:
    trainer = run(recipe(spec, method, lora=lora))
    assert step and all(flag.is_meta for flag in step)
    with pytest.raises((NotImplementedError, RuntimeError)):  # whoever looks does ask
        trainer.read(trainer.step(2), 2)


@frozen
class Asks:
    """An objective that makes a step wait."""

    needs = frozenset[Role]({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Any, shared: Shared) -> Loss:
        t = torch.full((len(batch),), 0.5, device=batch.x.device)
        value = nets["student"](batch.x, t, t, batch.cond).square().mean()
        return Loss(value * 2 if bool(value > 1) else value)


def test_one_that_waits_is_seen() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        run(recipe(Wan21(), Method("asks", (Update("student", ((1.0, Asks()),)),))))
