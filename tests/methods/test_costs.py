"""What a method costs, counted: calls with a graph (G) and without (F), a sample and iteration."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from flowmap import Stage
from flowmap._types import Role
from flowmap.method import Method
from flowmap.methods import anyflow, finetune, flow_matching, meanflow
from flowmap.testing import CountingFlowMap, counting
from flowmap.training.loop import Trainer
from tests.toys import Toy, data

BATCH = 8
ROLES = frozenset[Role]({"student", "teacher", "critic"})
Calls = dict[Role, tuple[int, int]]


def trainer(method: Method, micro: int | None = None) -> tuple[Trainer, dict[Role, CountingFlowMap]]:
    nets = counting(Toy().build(ROLES, device=torch.device("cpu"), dtype=torch.float32))
    for role in method.trains:
        nets[role].thaw()
    return Trainer(nets, Stage(method, 100, batch=BATCH, micro=micro), data(32)), nets


def calls(method: Method, micro: int | None = None, iterations: int = 1) -> Calls:
    """(G, F) by role, after `iterations`."""
    loop, nets = trainer(method, micro)
    for iteration in range(iterations):
        loop.step(iteration)
    return {role: (u.graph, u.plain) for role, u in nets.items()}


def test_flow_matching_costs_one_call_with_a_graph() -> None:
    method = flow_matching.flow_matching(role="student")
    assert calls(method) == {"student": (BATCH, 0), "teacher": (0, 0), "critic": (0, 0)}
    assert calls(anyflow.teacher())["teacher"] == (BATCH, 0)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("micro", [None, 1, 3])
def test_stage_1_costs_1_G_and_2_F(parity: bool, micro: int | None) -> None:
    """1 F for guidance, and 2 F for the derivative of the half of the batch that is off the diagonal."""
    assert calls(anyflow.forward(parity=parity, drop=0.0), micro)["student"] == (BATCH, 2 * BATCH)


@pytest.mark.parametrize("velocity", ["data", "teacher"])
def test_a_prompt_that_was_dropped_saves_its_null_call(velocity: Literal["data", "teacher"]) -> None:
    """A tenth of them, over the draws of a run, within four standard errors."""
    n = 40 * BATCH
    found = calls(anyflow.forward(velocity=velocity), iterations=40)
    null = found["student"][1] - n if velocity == "data" else found["teacher"][1] - n
    assert abs(null / n - 0.9) < 4 * (0.1 * 0.9 / n) ** 0.5


def test_without_guidance_stage_1_costs_1_F_less() -> None:
    assert calls(anyflow.forward(guidance=1.0))["student"] == (BATCH, BATCH)


def test_the_teachers_velocity_costs_two_calls_of_the_teacher_and_saves_one_of_the_student() -> None:
    found = calls(anyflow.forward(velocity="teacher", drop=0.0))
    assert found["student"] == (BATCH, BATCH)
    assert found["teacher"] == (0, 2 * BATCH)


@pytest.mark.parametrize("micro", [None, 1, 3])
def test_fine_tuning_costs_what_stage_1_does_and_asks_no_teacher(micro: int | None) -> None:
    """1 F of the null branch, 2 F for the derivative of the half of the batch that is off the diagonal."""
    assert calls(finetune.finetune(drop=0.0), micro) == {
        "student": (BATCH, 2 * BATCH),
        "teacher": (0, 0),
        "critic": (0, 0),
    }
    assert calls(finetune.finetune(diagonal=0.0, drop=0.0), micro)["student"] == (BATCH, 3 * BATCH)


def test_meanflow_costs_one_forward_mode_call_for_the_quarter_off_the_diagonal() -> None:
    assert calls(meanflow.meanflow())["student"] == (BATCH, BATCH // 4)


def test_improved_meanflow_costs_a_velocity_more_for_the_half_off_the_diagonal() -> None:
    loop, nets = trainer(meanflow.improved())
    loop.step(0)
    u = nets["student"]
    assert (u.graph, u.plain, u.plain_j) == (BATCH, BATCH, BATCH // 2)


@pytest.mark.parametrize("micro", [None, 4])
def test_stage_2_costs_3_or_4_G_and_2_F_of_the_student_2_F_of_the_teacher_1_F_and_1_G_of_the_critic(
    micro: int | None,
) -> None:
    """2 or 3 G for the rollout and 1 for stage 1; the critic learns from the samples that are there."""
    loop, nets = trainer(anyflow.on_policy(drop=0.0), micro)
    seen = set()
    for iteration in range(12):
        for u in nets.values():
            u.reset()
        loop.step(iteration)
        seen.add(nets["student"].graph)
        assert nets["student"].plain == 2 * BATCH
        assert (nets["teacher"].graph, nets["teacher"].plain) == (0, 2 * BATCH)
        assert (nets["critic"].graph, nets["critic"].plain) == (BATCH, BATCH)
    assert seen == {3 * BATCH, 4 * BATCH}


@pytest.mark.parametrize("micro", [None, 4])
def test_one_pass_saves_1_F_of_the_critic(micro: int | None) -> None:
    loop, nets = trainer(anyflow.on_policy(one_pass=True, drop=0.0), micro)
    for iteration in range(3):
        for u in nets.values():
            u.reset()
        loop.step(iteration)
        assert (nets["critic"].graph, nets["critic"].plain) == (BATCH, 0)
        assert (nets["teacher"].plain, nets["student"].plain) == (2 * BATCH, 2 * BATCH)


@pytest.mark.parametrize("micro", [None, 4])
def test_one_jump_has_one_graph_of_the_rollout_whatever_it_is(micro: int | None) -> None:
    loop, nets = trainer(anyflow.on_policy(one_jump=True, drop=0.0), micro)
    seen = set()
    for iteration in range(12):
        for u in nets.values():
            u.reset()
        loop.step(iteration)
        seen.add(nets["student"].plain)
        assert nets["student"].graph == 2 * BATCH
        assert (nets["teacher"].plain, nets["critic"].plain, nets["critic"].graph) == (2 * BATCH, BATCH, BATCH)
    assert seen == {3 * BATCH, 4 * BATCH}


@pytest.mark.parametrize("student_every, cotrain_every", [(1, 2), (1, 3), (2, 2)])
def test_cotrain_every_leaves_stage_1_out_of_the_updates_between(student_every: int, cotrain_every: int) -> None:
    method = anyflow.on_policy(
        cotrain_every=cotrain_every, student_every=student_every, critic_every=student_every, drop=0.0
    )
    loop, nets = trainer(method)
    for iteration in range(8):
        for u in nets.values():
            u.reset()
        loop.step(iteration)
        due, with_stage_1 = iteration % student_every == 0, iteration % (student_every * cotrain_every) == 0
        assert nets["student"].graph in ([(2 + with_stage_1) * BATCH, (3 + with_stage_1) * BATCH] if due else [0])
        assert nets["student"].plain == 2 * BATCH * with_stage_1
        assert nets["critic"].graph == BATCH * due
    with pytest.raises(ValueError, match="cotrain_every = 0: must be at least 1"):
        anyflow.on_policy(cotrain_every=0)
    with pytest.raises(ValueError, match="one_pass = True: needs the samples"):
        anyflow.on_policy(one_pass=True, share_rollout=False)


def test_a_rollout_costs_2_617_G_on_average_so_stage_2_costs_3_62() -> None:
    """Tested by enumeration in test_rollout; here over the draws of a run, four standard errors."""
    iterations = 120
    g = calls(anyflow.on_policy(cotrain=0.0), iterations=iterations)["student"][0] / BATCH / iterations
    assert abs(g - 2.617) < 4 * (0.617 * 0.383 / iterations) ** 0.5


@pytest.mark.parametrize("options", [{"share_rollout": False}, {"parity": True}])
def test_a_rollout_of_the_critics_own_costs_2_or_3_F_more(options: dict[str, bool]) -> None:
    loop, nets = trainer(anyflow.on_policy(drop=0.0, **options))
    seen = set()
    for iteration in range(12):
        for u in nets.values():
            u.reset()
        loop.step(iteration)
        seen.add(nets["student"].plain)
        assert nets["student"].graph in (3 * BATCH, 4 * BATCH)
        assert (nets["teacher"].plain, nets["critic"].plain, nets["critic"].graph) == (2 * BATCH, BATCH, BATCH)
    assert seen == {4 * BATCH, 5 * BATCH}


def test_updates_that_are_not_due_cost_nothing() -> None:
    """Student every second iteration: the critic then has a rollout of its own in each."""
    loop, nets = trainer(anyflow.on_policy(student_every=2, cotrain=0.0))
    loop.step(1)
    assert nets["student"].graph == 0 and nets["teacher"].plain == 0
    assert nets["critic"].graph == BATCH
