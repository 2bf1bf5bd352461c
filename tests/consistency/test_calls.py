"""What each method costs, counted against the table of the specification: G, F, J and GJ of 2.7, a sample and update of
the student."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowmap_consistency import causvid, consistency, rcm, scm, self_forcing, self_gradient_forcing
from flowmap_consistency.consistency import heun

from flowmap import FlowMap, Stage
from flowmap._types import Cache, Cond, Latent, Role
from flowmap.derivative import CentralDifference
from flowmap.method import Method
from flowmap.testing import CountingFlowMap, counting
from flowmap.training.loop import Trainer
from tests.methods.test_costs import BATCH, ROLES, trainer
from tests.toys import CHUNK, FRAMES, Toy, data

Calls = dict[Role, tuple[float, float, float, float]]


def calls(method: Method, iterations: int = 1) -> Calls:
    """(G, F, J, GJ) a sample by role, after `iterations`; J are not counted among the F."""
    loop, nets = trainer(method)
    for iteration in range(iterations):
        loop.step(iteration)
    return {
        role: tuple(n / BATCH for n in (u.graph - u.graph_j, u.plain - u.plain_j, u.plain_j, u.graph_j))  # type: ignore[misc]
        for role, u in nets.items()
    }


NONE = (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "method, student, teacher",
    [
        (consistency.consistency(), (1, 1, 0, 0), (0, 2, 0, 0)),
        (consistency.consistency(solver=heun), (1, 1, 0, 0), (0, 4, 0, 0)),
        (consistency.lcm(), (1, 1, 0, 0), (0, 2, 0, 0)),
        (consistency.training(), (1, 1, 0, 0), NONE),
        (scm.scm(), (1, 0, 1, 0), (0, 2, 0, 0)),
        (scm.scm(w=1.0), (1, 0, 1, 0), (0, 1, 0, 0)),
        (scm.scm(derivative=CentralDifference()), (1, 2, 0, 0), (0, 2, 0, 0)),
        (scm.training(), (1, 0, 1, 0), NONE),
        (rcm.warmup(), (1, 0, 1, 0), (0, 2, 0, 0)),
        (self_forcing.ode_init(steps=10), (1, 0, 0, 0), (0, 2 * 12, 0, 0)),  # 10 steps, two of them cut in two
        (causvid.ode_init(times=(1.0, 0.5), shift=1.0, steps=10), (1, 0, 0, 0), (0, 2 * 10, 0, 0)),
    ],
)
def test_a_regression(method: Method, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """CD and LCM 1 G + 1 F + 2 F_T, twice that of the teacher with Heun; sCM 1 G + 1 J + 2 F_T."""
    assert calls(method) == {"student": student, "teacher": teacher, "critic": NONE}


def test_causvid_costs_1_G_and_5_F_and_5_updates_of_the_critic() -> None:
    assert calls(causvid.causvid(), 5) == {
        "student": (1, 5, 0, 0),
        "teacher": (0, 2, 0, 0),
        "critic": (5, 1, 0, 0),
    }


def rounds(method: Method, every: int, number: int) -> Calls:
    """The mean of `number` rounds of `every` iterations."""
    return {role: tuple(n / number for n in found) for role, found in calls(method, every * number).items()}  # type: ignore[misc]


ROUNDS = 60


def test_rcm_costs_2_G_1_J_1_5_F_and_4_updates_of_the_critic_of_2_5_F_each() -> None:
    """Of a round: 1.5 + 10 F on average, each rollout 1 to 4 steps; four standard errors."""
    found = rounds(rcm.rcm(), 5, ROUNDS)
    student_g, student_f, j, gj = found["student"]
    assert (student_g, j, gj) == (2, 1, 0)
    assert abs(student_f - (1.5 + 4 * 2.5)) < 4 * (5 * 1.25 / ROUNDS) ** 0.5
    assert found["teacher"] == (0, 4, 0, 0)
    assert found["critic"] == (4, 1, 0, 0)


def test_self_forcing_costs_1_G_and_1_5_F_and_5_updates_of_the_critic_of_2_5_F_each() -> None:
    found = rounds(self_forcing.self_forcing(), 5, ROUNDS)
    student_g, student_f, j, gj = found["student"]
    assert (student_g, j, gj) == (1, 0, 0)
    assert abs(student_f - (1.5 + 5 * 2.5)) < 4 * (6 * 1.25 / ROUNDS) ** 0.5
    assert found["teacher"] == (0, 2, 0, 0)
    assert found["critic"] == (5, 1, 0, 0)


class Sweeps(CountingFlowMap):
    """Counts frames, so that one sweep over the chunks of a video is a call, and those that are encoded as history."""

    def __init__(self, u: FlowMap) -> None:
        super().__init__(u)
        self.encoded = 0.0

    def forward(self, z: Latent, t: Any, r: Any, cond: Cond, cache: Cache = None) -> Latent:
        before = self.graph, self.plain
        out = super().forward(z, t, r, cond, cache)
        share = z.shape[1] / FRAMES
        self.graph, self.plain = (  # type: ignore[assignment]
            a + share * (b - a) for a, b in zip(before, (self.graph, self.plain), strict=True)
        )
        return out

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        self.encoded += len(x) * x.shape[1] / FRAMES
        return super().extend(cache, x, cond)


@pytest.mark.parametrize(
    "method, encoded, plain",
    [
        (self_forcing.self_forcing(), 6, None),
        (self_gradient_forcing.self_gradient_forcing(), 6, None),
        (causvid.causvid(), 6, 5),
    ],
)
def test_chunk_after_chunk_the_same_in_sweeps_and_history_is_encoded_but_for_the_last_chunk(
    method: Method, encoded: int, plain: int | None
) -> None:
    """The table's further F a rollout, which writes the cache: 6 in a round, of all chunks but the last."""
    device, dtype = torch.device("cpu"), torch.float32
    nets: dict[Role, Any] = dict(counting(Toy().build(ROLES - {"student"}, device=device, dtype=dtype)))
    student = Toy(causal=True).build(frozenset[Role]({"student"}), device=device, dtype=dtype)["student"]
    nets["student"] = Sweeps(student)
    loop = Trainer(nets, Stage(method, 100, batch=BATCH), data(32))
    for iteration in range(5):
        loop.step(iteration)
    found = nets["student"]
    assert found.graph == BATCH
    assert found.encoded == encoded * BATCH * (FRAMES - CHUNK) / FRAMES
    if plain is not None:
        assert found.plain == plain * BATCH
    assert (nets["teacher"].plain, nets["critic"].graph, nets["critic"].plain) == (2 * BATCH, 5 * BATCH, BATCH)
