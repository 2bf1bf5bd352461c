"""The methods are the papers': every number of the reference, written down once more."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from attrs import evolve
from flowmap_digits.rewards import INK

from flowmap.derivative import WIDTH, CentralDifference, ForwardMode
from flowmap.guidance import Exact, Fused
from flowmap.method import Method, Update
from flowmap.methods import anyflow, flow_matching, meanflow
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.plugins import collect, manager
from flowmap.recipe import describe
from flowmap.rewards import Scores
from flowmap.reweights import Adaptive, Balanced, Beta
from flowmap.rollout import FlowMapBackwardSimulation
from flowmap.times import Diagonal, LogitNormal, Triangle
from tests.toys import Toy

ROLLOUT = FlowMapBackwardSimulation((2, 4, 8, 16, 50), shift=5.0)


def stage_1(parity: bool) -> FlowMapMatching:
    return FlowMapMatching(
        times=Triangle(diagonal=0.5, edge=0.25, shift=5.0),
        derivative=CentralDifference(5e-3, clamp=False) if parity else CentralDifference(WIDTH),
        reweight=(Beta(1.0, 0.5, 5.0), Balanced(1e-5)),
        guidance=Fused(3.0, 0.1) if parity else Exact(3.0, 0.1),
        velocity="data",
    )


@pytest.mark.parametrize("parity", [True, False])
def test_stage_1_is_anyflows(parity: bool) -> None:
    assert anyflow.forward(parity=parity).updates == (Update("student", ((1.0, stage_1(parity)),)),)


def test_stage_2_in_parity_is_the_reference() -> None:
    """w = 4 is the reference's 3.0; t over all of [0, 1]; no floor; a rollout of the critic's own; co-training on."""
    matching = DistributionMatching(ROLLOUT, Diagonal(shift=5.0, low=0.0, high=1.0), w=4.0, floor=0.0)
    critic = CriticMatching(ROLLOUT, Diagonal(LogitNormal(0.0, 1.0), shift=5.0))
    assert anyflow.on_policy(parity=True).updates == (
        Update("student", ((1.0, matching), (1.0, stage_1(parity=True))), every=1),
        Update("critic", ((1.0, critic),), every=1),
    )


def test_stage_2_by_default_is_guarded_and_shares_the_rollout() -> None:
    matching = DistributionMatching(ROLLOUT, Diagonal(shift=5.0, low=0.02, high=0.98), w=4.0, floor=1e-3)
    critic = CriticMatching(None, Diagonal(LogitNormal(0.0, 1.0), shift=5.0))
    assert anyflow.on_policy().updates == (
        Update("student", ((1.0, matching), (1.0, stage_1(parity=False))), every=1),
        Update("critic", ((1.0, critic),), every=1),
    )


def test_stage_2_can_walk_its_rollout_again() -> None:
    (_, matching), *_ = anyflow.on_policy(replay=True).updates[0].terms
    assert isinstance(matching, DistributionMatching)
    assert matching.rollout == evolve(ROLLOUT, replay=True)


def test_stage_0_is_flow_matching_of_the_teacher() -> None:
    matching = FlowMapMatching(Diagonal(LogitNormal(0.0, 1.0), 5.0), guidance=Exact(1.0, 0.1), role="teacher")
    assert anyflow.teacher().updates == (Update("teacher", ((1.0, matching),)),)
    assert anyflow.teacher() == flow_matching.flow_matching()


def test_meanflow_is_the_published_one() -> None:
    matching = FlowMapMatching(
        Triangle(0.75, 0.0, 1.0, LogitNormal(-0.4, 1.0)), ForwardMode(), (Adaptive(1.0, 1e-2),), Exact(1.0, 0.1)
    )
    assert meanflow.meanflow().updates == (Update("student", ((1.0, matching),)),)


def test_cotraining_can_be_left_out() -> None:
    (student, _) = anyflow.on_policy(cotrain=0.0).updates
    assert [type(term) for _, term in student.terms] == [DistributionMatching]


def critic_of(method: Method) -> Any:
    return method.updates[1].terms[0][1]


@pytest.mark.parametrize("student_every, critic_every", [*product((1, 2, 3), repeat=2)])
def test_the_critic_shares_the_students_samples_only_where_there_always_are_some(
    student_every: int, critic_every: int
) -> None:
    method = anyflow.on_policy(student_every=student_every, critic_every=critic_every)
    always = all(i % student_every == 0 for i in range(36) if i % critic_every == 0)
    assert (critic_of(method).rollout is None) == always


def test_a_critic_that_is_not_to_share_rolls_out() -> None:
    assert critic_of(anyflow.on_policy(share_rollout=False)).rollout == ROLLOUT


METHODS = collect(manager(), "flowmap_methods")
GIVEN = {name: (Scores(Toy(), ((1.0, INK),)),) for name in METHODS if name.startswith("reward_")}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_registered_method_is_a_value_with_a_citation(name: str) -> None:
    given = GIVEN.get(name, ())
    method = METHODS[name](*given)
    assert isinstance(method, Method)
    assert method == METHODS[name](*given)
    assert all(entry.startswith("@article{") for entry in method.citations) and method.citations
    assert '"<' not in json.dumps(describe(method))
    assert method.trains <= method.needs


def test_the_cores_methods_are_registered() -> None:
    anyflows = {"anyflow_teacher", "anyflow_forward", "anyflow_on_policy"}
    assert anyflows | {"finetune", "flow_matching", "improved_meanflow", "meanflow"} <= {*METHODS}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Update("generator", ((1.0, stage_1(False)),)), r".role = .*: must be '"),
        (lambda: Update("student", ()), r".terms = .*: must have at least 1"),
        (lambda: Update("student", ((1.0, stage_1(False)),), every=0), r".every = .*: must be .*>= 1"),
        (lambda: Method("empty", ()), r".updates = .*: must have at least 1"),
        (lambda: anyflow.forward(guidance=0.5), r".w = .*: must be .*>= 1"),
        (lambda: anyflow.forward(diagonal=0.9, edge=0.2), r"Triangle.diagonal \+ edge"),
        (lambda: anyflow.on_policy(steps=()), "must name at least one budget"),
        (lambda: anyflow.on_policy(velocity="teacher", parity=True), "guided already; use Exact"),
    ],
)
def test_a_wrong_value_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
