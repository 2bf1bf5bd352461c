"""What an iteration costs, against the counts on paper: F is one call without a graph, G one with it, backward, 3 F."""

import pytest
import torch
from flowmap_wan21 import Lora, Wan21
from torch.utils.flop_counter import FlopCounterMode

from flowmap import Stage, TensorData
from flowmap.methods import anyflow, flow_matching
from flowmap.planning.flops import Meter, flops_by_part, flops_of_call, total

BATCH, ITERATIONS = 4, 8
ROLES = frozenset({"student", "teacher", "critic"})


def cost(method, lora=None, iterations=1):
    """Operations by part, in units of F."""
    spec = Wan21(lora=lora, text_length=16, text_tokens=8)
    nets = spec.build(ROLES, device=torch.device("cpu"), dtype=torch.float32)
    x, cond = spec.example(BATCH)
    data = TensorData(x, cond, spec.null(cond))
    found = flops_by_part(Stage(method, steps=1, batch=BATCH), nets, data, iterations)
    one = flops_of_call(nets["student"], x, cond)
    return {part: count / one for part, count in found.items()}


@pytest.fixture(scope="module")
def plain():
    return cost(flow_matching.flow_matching(role="student"))


@pytest.fixture(scope="module")
def forward():
    return cost(anyflow.forward(drop=0.0))


@pytest.fixture(scope="module")
def on_policy():
    return cost(anyflow.on_policy(drop=0.0), iterations=ITERATIONS)


def test_flow_matching_is_one_g(plain):
    assert plain == {"student forward": 1.0, "student backward": pytest.approx(2.0, abs=0.06)}


def test_stage_one_is_one_g_and_two_f(forward, plain):
    """Half of the samples are off the diagonal, and the difference takes two calls."""
    backward = {"student backward": pytest.approx(plain["student backward"])}
    assert forward == {"student forward": 1.0, "guidance": 1.0, "derivative": 1.0, **backward}
    assert total(forward) / total(plain) == pytest.approx((3 + 2) / 3, rel=0.02)


def test_stage_two_reuses_the_rollout(on_policy):
    """2.62 G + 1 G for the student, 2 F in stage 1's loss, 2 F of the teacher, 1 F and 1 G of the critic."""
    jumps = on_policy["rollout forward"]  # 2.617 expected
    assert jumps == pytest.approx(2.617, abs=0.3)
    student = {"student forward": 1.0, "guidance": 1.0, "derivative": 1.0}
    others = {"teacher": 2.0, "critic score": 1.0, "critic forward": 1.0}
    backward = {"rollout backward": 2 * jumps, "student backward": 2.0, "critic backward": 2.0}
    assert on_policy == {
        "rollout forward": jumps,
        **student,
        **{part: pytest.approx(count, rel=0.03) for part, count in (others | backward).items()},
    }


def test_stage_two_over_flow_matching(on_policy, plain):
    """18.9 F against 3 F, with as many jumps as expected."""
    jumps = on_policy["rollout forward"]
    expected = (3 * (jumps + 1) + 2 + 2 + 1 + 3) / 3
    assert total(on_policy) / total(plain) == pytest.approx(expected, rel=0.02)
    assert pytest.approx(18.86 / 3, abs=0.3) == expected


def test_a_rollout_with_one_graph_costs_one_g_whatever_the_jumps():
    found = cost(anyflow.on_policy(one_jump=True, steps=(8,), drop=0.0), iterations=2)
    assert found["rollout forward"] == 1.0 and found["rollout backward"] == pytest.approx(2.0, rel=0.03)
    assert found["rollout"] in (1.0, 1.5, 2.0)


def test_a_rollout_of_its_own_costs_the_critic_as_many_calls():
    found = cost(anyflow.on_policy(share_rollout=False, steps=(8,), drop=0.0), iterations=2)
    assert found["critic rollout"] in (2.0, 2.5, 3.0)


def test_adapters_save_the_gradients_of_the_base():
    found = cost(flow_matching.flow_matching(role="student"), Lora(1, 1))
    assert found["student backward"] == pytest.approx(1.0, abs=0.1)
    assert total(cost(anyflow.forward(drop=0.0), Lora(1, 1))) / total(found) == pytest.approx((2 + 2) / 2, rel=0.03)


def test_the_networks_are_left_as_they_were():
    """Neither hooks nor strategies stay behind."""
    spec = Wan21(lora=None)
    nets = spec.build(ROLES, device=torch.device("cpu"), dtype=torch.float32)
    x, cond = spec.example(2)
    method, before = anyflow.forward(guidance=1.0), anyflow.forward(guidance=1.0)
    flops_by_part(Stage(method, steps=1, batch=2), nets, TensorData(x, cond))
    assert method == before
    assert not any(u._forward_hooks or u._forward_pre_hooks for u in nets.values())


def test_a_rollout_that_ends_above_data_is_named_too():
    method = anyflow.on_policy(within=(0.875, 1.0), share_rollout=False)
    assert Meter(FlopCounterMode(display=False)).method(method).needs == method.needs
