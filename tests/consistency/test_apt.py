"""APT: one step, and a judge of clean samples."""

from __future__ import annotations

import pytest
import torch
from flowmap_consistency.adversarial import Adversarial, Discrimination
from flowmap_consistency.apt import HEADS, ONE_STEP, apt, initialisation, stages
from flowmap_consistency.consistency import DiscreteConsistency, Neighbours

from flowmap import AdamW, Recipe, Rng, Stage
from flowmap.method import Update
from flowmap.methods import anyflow
from flowmap.testing import GaussianFlowMap
from flowmap.times import Diagonal
from tests.consistency.judges import CPU, ROLES, calls, one, toy, trainer
from tests.toys import Toy


def test_the_first_stage_is_consistency_distillation_of_the_guided_teacher() -> None:
    matching = DiscreteConsistency(Neighbours(48, 1, 5.0), "teacher", w=5.0)
    assert initialisation().updates == (Update("student", ((1.0, matching),)),)


def test_the_second_is_the_published_one() -> None:
    """λ = 100, σ = 0.1 for video, clean samples, a shifted t as a condition, one update each."""
    fool = Adversarial(ONE_STEP, HEADS, Diagonal(shift=5.0), noised=False)
    tell = Discrimination(ONE_STEP, HEADS, Diagonal(shift=5.0), noised=False, r1=100.0, sigma=0.1)
    assert apt().updates == (Update("student", ((1.0, fool),)), Update("critic", ((1.0, tell),)))
    assert HEADS.blocks(36) == (15, 25, 35) and HEADS.pool == "query"
    assert apt().needs == {"student", "critic"}


def test_the_generator_is_noise_less_the_velocity_to_the_edge() -> None:
    """x = ε - u(ε, 1, 0), exactly."""
    for u, noise, c in (
        (GaussianFlowMap(0.3, 0.7), Rng.seeded(0).noise_like(torch.zeros(5, 3)), {}),
        (toy().build(ROLES, device=CPU, dtype=torch.float32)["student"], one().x, one().cond),
    ):
        ones, zeros = torch.ones(len(noise)), torch.zeros(len(noise))
        x = ONE_STEP(u, noise, c, Rng.seeded(1))
        torch.testing.assert_close(x, noise - u(noise, ones, zeros, c), rtol=0, atol=0)


def test_the_true_flow_map_makes_data_in_one_step() -> None:
    x = ONE_STEP(GaussianFlowMap(0.3, 0.7), Rng.seeded(0).noise_like(torch.zeros(4096, 1)), {}, Rng.seeded(1))
    assert abs(float(x.mean().detach()) - 0.3) < 0.05 and abs(float(x.std().detach()) - 0.7) < 0.05


@pytest.mark.parametrize("micro", [None, 3])
def test_it_costs_what_the_table_says(micro: int | None) -> None:
    """1 G + 1 G_D and 1 F + 3 G_D; without R1 one less; no teacher."""
    assert calls(apt(), micro=micro) == {"student": (1, 1), "teacher": (0, 0), "critic": (1 + 3, 0)}
    assert calls(apt(r1=0.0), micro=micro)["critic"] == (1 + 2, 0)
    assert calls(initialisation(), micro=micro) == {"student": (1, 1), "teacher": (0, 2), "critic": (0, 0)}


@pytest.mark.parametrize("spec", [Toy(), Toy(causal=True), Toy(shared=True, checkpointing=True)])
def test_both_sides_learn(spec: Toy) -> None:
    loop, _ = trainer(apt(), spec)
    for iteration in range(3):
        logs = loop.step(iteration)
        assert float(logs["student/gradient_norm"].value) > 0 and float(logs["critic/gradient_norm"].value) > 0
        assert {"critic/gan/real", "critic/gan/fake", "critic/gan/r1"} <= logs.keys()


def test_a_critic_left_alone_learns_to_tell_data_from_samples() -> None:
    """On the toy: the logit of data rises above that of samples, and the R1 keeps their slope small."""
    loop, _ = trainer(apt(r1=1.0), optimizer={"student": AdamW(1e-6), "critic": AdamW(3e-3)})
    gaps = []
    for iteration in range(60):
        logs = loop.step(iteration)
        gaps.append(float(logs["critic/gan/real"].value - logs["critic/gan/fake"].value))
    assert sum(gaps[-10:]) / 10 > 0.5 + sum(gaps[:3]) / 3


def test_at_a_recipes_scale_consistency_comes_first() -> None:
    recipe = Recipe(toy(), (Stage(anyflow.forward(), 100), Stage(anyflow.on_policy(guidance=2.0), 30, batch=8)))
    first, second = stages(recipe)
    assert (first.steps, first.method) == (100, initialisation(shift=1.0, w=2.0))
    assert (second.steps, second.batch, second.method) == (30, 8, apt(shift=1.0))
