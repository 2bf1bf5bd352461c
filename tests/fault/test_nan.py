"""R5: NaN or Inf in a loss or a gradient. All ranks leave the step out; many in a row end the run; nothing is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from attrs import evolve, frozen
from torch import Tensor

from flowmap import Recipe, distill
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.data import indices
from flowmap.hookspecs import hookimpl
from flowmap.plugins import manager
from flowmap.training.loop import MAX_SKIPPED, Trainer
from flowmap.training.store.checkpoint import published
from tests.toys import Toy, ToyFlowMap, data

from .harness import recipe, run, status, tensors_of


@frozen
class Poison:
    """What goes wrong: in which role's network, at which iterations of the last stage, on the last rank; in a teacher
    on all of them."""

    role: Role
    iterations: Sequence[int]
    value: float = float("nan")
    backward: bool = False  # in the gradient alone, of a loss that is finite


class Poisoned(ToyFlowMap):
    poison: Poison
    trainer: Trainer | None = None

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        u = super().forward(z, t, r, cond, cache)
        here = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
        frozen = self.poison.role == "teacher"
        if self.trainer is None or self.role != self.poison.role or not (frozen or (u.requires_grad and here)):
            return u
        if self.trainer.shared.iteration not in self.poison.iterations:
            return u
        if self.poison.backward:
            u.register_hook(lambda gradient: gradient * self.poison.value)
            return u
        return u * self.poison.value


class Begun:
    @staticmethod
    @hookimpl
    def flowmap_train_start(trainer: Trainer) -> None:
        Poisoned.trainer = trainer


def last_stage(steps: int) -> Recipe:
    made = recipe()
    stage = evolve(made.stages[2], steps=steps)
    return evolve(made, backbone=Toy(shared=True, network=Poisoned), stages=(stage,))


def poisoned(out: Path, *, poison: Poison, steps: int) -> None:
    Poisoned.poison = poison
    pm = manager(Begun(), entry_points=False)
    distill(last_stage(steps), data(), out=out, save_minutes=0, device="cpu", pm=pm)


def of(role: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, average, moments and the optimiser's count of steps."""
    found = {name: value for name, value in tensors.items() if role in name.split("/")[:2]}
    assert any(name.startswith(f"optim/{role}/step/") for name in found)
    return found


CASES = [
    Poison("student", [3]),
    Poison("critic", [3]),
    Poison("student", [3], float("inf")),
    Poison("critic", [3], backward=True),
]


@pytest.mark.row("R5")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("poison", CASES, ids=lambda p: f"{p.role} {p.value}{' backward' * p.backward}")
def test_the_step_is_left_out_on_all_ranks(poison: Poison, ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    end = run(out, ranks=ranks, job=partial(poisoned, poison=poison, steps=4))
    assert end.code == 0, end.said
    before, after = (tensors_of(path) for path in published(out / "checkpoints"))
    bad: Role = poison.role
    kept = of(bad, before)
    assert all(torch.equal(value, of(bad, after)[name]) for name, value in kept.items())
    if bad == "critic":  # which learns from the student's samples, and not the other way round
        assert not all(torch.equal(value, of("student", after)[name]) for name, value in of("student", before).items())
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.row("R5")
@pytest.mark.parametrize("role, ranks", [("student", 1), ("critic", 2)])
def test_now_and_then_is_survived(role: Role, ranks: int, tmp_path: Path) -> None:
    job = partial(poisoned, poison=Poison(role, [3, 6]), steps=8)
    end = run(tmp_path / "run", ranks=ranks, job=job)
    assert end.code == 0, end.said
    assert status(tmp_path / "run")["state"] == "finished"
    last = tensors_of(published(tmp_path / "run" / "checkpoints")[-1])
    for each in ("student", "critic"):
        steps = {int(value) for name, value in last.items() if name.startswith(f"optim/{each}/step/")}
        assert steps == {6 if each == role or role == "student" else 8}  # a critic learns from the student's samples


@pytest.mark.row("R5")
@pytest.mark.parametrize("role, ranks", [("student", 1), ("critic", 2)])
def test_many_in_a_row_end_the_run(role: Role, ranks: int, tmp_path: Path) -> None:
    out, iterations = tmp_path / "run", range(3, 3 + MAX_SKIPPED)
    end = run(out, ranks=ranks, job=partial(poisoned, poison=Poison(role, iterations), steps=12))
    assert end.codes == (1,) * ranks, end.said
    said = status(out)
    assert said["state"] == "failed" and said["resumable"] and str(said["checkpoint"]).startswith("step_00_")
    reason = str(said["reason"])
    assert f"'s loss or gradient was not finite {MAX_SKIPPED} times in a row" in reason
    assert "stage 0 (anyflow_on_policy)" in reason
    found = re.search(
        r"the last time in iteration 7, the loss of samples? ([\d, ]+?)( on rank (\d))?(: lower|, since)", reason
    )
    assert found is not None and found[3] == (None if ranks == 1 else str(ranks - 1))
    samples = indices(16, 4, 7, 0, 0)[-4 // ranks :]  # of the last rank
    assert {*map(int, found[1].split(", "))} == {*samples}
    assert reason.endswith(f"; the last good checkpoint is {said['checkpoint']}")
    last = tensors_of(published(out / "checkpoints")[-1])
    assert all(value.isfinite().all() for value in last.values())
    assert run(out, ranks=ranks, job=partial(poisoned, poison=Poison(role, []), steps=12)).code == 0  # nothing was lost


@pytest.mark.row("R5")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_teacher_that_is_not_finite_ends_the_run_and_is_named(ranks: int, tmp_path: Path) -> None:
    """Beside a term that does without it: no sample is left of the other."""
    out, poison = tmp_path / "run", Poison("teacher", range(3, 3 + MAX_SKIPPED))
    end = run(out, ranks=ranks, job=partial(poisoned, poison=poison, steps=12))
    assert end.codes == (1,) * ranks, end.said
    said = status(out)
    assert said["state"] == "failed" and said["resumable"]
    assert re.fullmatch(
        rf"TrainingError: the student was left without a sample that counts {MAX_SKIPPED} times in a row, by iteration "
        r"\d+ of stage 0 \(anyflow_on_policy\); the last time in iteration 7, since what the teacher gave was not "
        r"finite: look at the teacher; the last good checkpoint is \w+",
        str(said["reason"]),
    )
