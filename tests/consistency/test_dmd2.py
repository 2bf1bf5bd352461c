"""DMD2: the published settings, what it costs, and that it trains students of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowmap_consistency.adversarial import Adversarial, Discrimination, OneRollout
from flowmap_consistency.dmd2 import HEADS, dmd2, stages
from flowmap_far import Far

from flowmap import AdamW, Recipe, Rng, Stage
from flowmap._types import Role
from flowmap.data import TensorData
from flowmap.method import Update
from flowmap.methods import anyflow
from flowmap.objectives import equipped
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.rollout import ConsistencySimulation
from flowmap.times import Diagonal
from flowmap.training.loop import Trainer
from tests.consistency.judges import BATCH, CPU, ROLES, calls, toy, trainer
from tests.toys import Toy, data

ROLLOUT = ConsistencySimulation((1.0, 0.9375, 0.8333333134651184, 0.625))  # type: ignore[arg-type]


def test_it_is_the_published_one() -> None:
    """½ of the squares, GAN weights 5e-3 and 1e-2, t in [0.02, 0.98] for scores and anywhere for D, 5 : 1, no floor."""
    student, critic = dmd2().updates
    matching = DistributionMatching(ROLLOUT, Diagonal(shift=5.0, low=0.02, high=0.98), w=5.0, floor=0.0)
    fool = Adversarial(ROLLOUT, HEADS, Diagonal(shift=5.0), noised=True)
    tell = Discrimination(ROLLOUT, HEADS, Diagonal(shift=5.0), noised=True, r1=0.0)
    assert student == Update("student", ((1.0, OneRollout(((0.5, matching), (5e-3, fool)))),), every=5)
    learns = CriticMatching(ROLLOUT, Diagonal(shift=5.0))
    assert critic == Update("critic", ((1.0, OneRollout(((1.0, learns), (1e-2, tell)), gradient=False)),))
    assert HEADS.blocks(30) == (15, 22, 29) and HEADS.pool == "mean"


def test_without_the_gan_it_is_distribution_matching_and_a_critic() -> None:
    student, critic = dmd2(gan=0.0, gan_critic=0.0).updates
    assert [(w, type(term)) for w, term in student.terms] == [(0.5, DistributionMatching)]
    assert [(w, type(term)) for w, term in critic.terms] == [(1.0, CriticMatching)]


def exits(monkeypatch: pytest.MonkeyPatch, j: int) -> None:
    """Every rollout ends at its step j."""
    monkeypatch.setattr(Rng, "randint", lambda self, n: j % n)


Calls = dict[Role, tuple[float, float]]


def mean(found: list[Calls]) -> Calls:
    roles: tuple[Role, ...] = ("student", "teacher", "critic")
    return {role: tuple(sum(c[role][i] for c in found) / len(found) for i in (0, 1)) for role in roles}  # type: ignore[misc]


@pytest.mark.parametrize(
    "options, critic",
    [
        ({"gan": 0.0, "gan_critic": 0.0}, (5, 1)),  # 5 G_C + 1 F_C
        ({}, (1 + 5 + 10, 1)),  # and 1 G_D of the student's side, 10 of its own
        ({"r1": 100.0}, (1 + 5 + 15, 1)),
    ],
)
@pytest.mark.parametrize("micro", [None, 3])
def test_it_costs_what_the_table_says(
    options: dict[str, float], critic: tuple[float, float], micro: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 G + 1.5 F + 12.5 F of the student, 2 F of the teacher: by enumeration of where the rollouts end."""
    found = []
    for j in range(4):
        exits(monkeypatch, j)
        found.append(calls(dmd2(**options), iterations=5, micro=micro))  # type: ignore[arg-type]
        assert found[-1]["student"] == (1, j + 5 * (j + 1))
    assert mean(found) == {"student": (1, 1.5 + 12.5), "teacher": (0, 2), "critic": critic}


def test_the_student_learns_in_one_of_five_iterations() -> None:
    loop, nets = trainer(dmd2())
    logs = [loop.step(i) for i in range(6)]
    assert [any(name.startswith("student/") for name in found) for found in logs] == [True, *[False] * 4, True]
    assert all("critic/gan/real" in found and "critic/loss" in found for found in logs)
    assert {"student/gan/loss", "student/dmd/gradient"} <= logs[0].keys()
    assert nets["student"].graph == 2 * BATCH


@pytest.mark.parametrize(
    "spec", [Toy(causal=True), Toy(causal=True, shared=True, checkpointing=True), Toy(shared=True)]
)
@pytest.mark.parametrize("replay", [False, True])
def test_students_in_chunks_and_on_a_shared_base_learn(spec: Toy, replay: bool) -> None:
    """Both sides move, and what moves is theirs: the frozen base stays."""
    nets = toy(spec).build(ROLES, device=CPU, dtype=torch.float32)
    method = dmd2(replay=replay)
    nets = equipped(nets, method.equips, data(1).batch([0]))
    before = {role: {name: p.detach().clone() for name, p in nets[role].trained().items()} for role in ROLES}
    frozen = {name: p.detach().clone() for name, p in nets["teacher"].named_parameters() if not p.requires_grad}
    loop = Trainer(nets, Stage(method, 100, batch=4, micro=2, optimizer=AdamW(lr=1e-2)), data(16))
    logs = [loop.step(i) for i in range(6)]
    for role in ("student", "critic"):
        moved = [not torch.equal(p, before[role][name]) for name, p in nets[role].trained().items()]  # type: ignore[index]
        assert sum(moved) >= len(moved) - 4  # in four steps some part may not be called
    assert all(torch.equal(p, frozen[name]) for name, p in nets["teacher"].named_parameters() if name in frozen)
    assert all(mean.value.isfinite() for found in logs for name, mean in found.items())


def test_far_learns() -> None:
    """Chunks after chunks, judged and scored on the whole video."""
    spec = Far(lora=None).tiny()
    z, c = spec.example(4)
    method = dmd2(number=2, every=2)
    pool = TensorData(z, dict(c), {"text": torch.zeros(1, *c["text"].shape[1:])})
    nets = equipped(spec.build(ROLES, device=CPU, dtype=torch.float32), method.equips, pool.batch([0]))
    loop = Trainer(nets, Stage(method, 10, batch=2, optimizer=AdamW(lr=1e-3), ema=None), pool)
    before = {role: {n: p.detach().clone() for n, p in nets[role].trained().items()} for role in ("student", "critic")}  # type: ignore[index]
    logs = loop.step(0)
    assert float(logs["student/gradient_norm"].value) > 0 and float(logs["critic/skipped"].value) == 0
    assert any(not torch.equal(p, before["student"][name]) for name, p in nets["student"].trained().items())
    assert not torch.equal(nets["critic"].trained()["judge.out.weight"], before["critic"]["judge.out.weight"])


def test_at_a_recipes_scale_it_has_the_recipes_settings() -> None:
    settings: dict[Role, AdamW] = {"student": AdamW(1e-4), "critic": AdamW(3e-4)}
    on_policy = Stage(anyflow.on_policy(guidance=2.0), 30, batch=8, optimizer=settings)
    recipe = Recipe(toy(), (Stage(anyflow.forward(), 100), on_policy))
    (stage,) = stages(recipe)
    assert (stage.steps, stage.batch, stage.optimizer) == (150, 8, on_policy.optimizer)
    assert stage.method == dmd2(shift=1.0, w=2.0)


def test_no_gradient_of_the_student_where_critic_is_teacher_and_nothing_to_fool() -> None:
    """A fresh critic is the teacher: without guidance the score's part is zero, and the rest is the head's opinion."""
    loop, _ = trainer(dmd2(w=1.0, gan=1e-9))
    logs: Any = loop.step(0)
    assert float(logs["student/dmd/gradient"].value) == 0.0
    assert 0.0 < float(logs["student/gradient_norm"].value) < 1e-6


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("j", range(4))
def test_no_noise_is_drawn_twice_in_an_update(j: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples seen under the noise that made them look less noisy than they are, and the critic learns that."""
    exits(monkeypatch, j)
    drawn: list[torch.Tensor] = []
    draw = Rng.noise_like

    def listening(self: Rng, x: torch.Tensor) -> torch.Tensor:
        drawn.append(draw(self, x))
        return drawn[-1]

    monkeypatch.setattr(Rng, "noise_like", listening)
    training, _ = trainer(dmd2(), Toy(causal=causal))
    drawn.clear()  # the data's own
    training.step(0)
    first = [noise.flatten()[:4].tolist() for noise in drawn]
    assert len(first) == len({tuple(values) for values in first}) > 4
