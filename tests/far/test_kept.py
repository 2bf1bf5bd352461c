"""The history of a teacher-forced call depends neither on z nor on the times: the derivative reuses it, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_far import Far
from flowmap_far.network import FarFlowMap
from torch import Tensor, nn

from flowmap import Rng
from flowmap._types import Role, Shared
from flowmap.derivative import CentralDifference, Derivative, ForwardMode
from flowmap.model import Kept
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.times import Triangle

from .test_network import CPU, FULL, LORA, batch, example, forced, shake, student

T, R = torch.tensor([0.9, 0.5, 0.7]), torch.tensor([0.4, 0.0, 0.1])
ROLES = frozenset[Role]({"student", "teacher"})
CENTRAL = CentralDifference()


def loss(spec: Far, derivative: Derivative = CENTRAL) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    """Of stage 1 with guidance, its gradients, and how many tokens went through the blocks, call by call."""
    u: Any = spec.build(ROLES, device=CPU, dtype=torch.float32)["student"]
    shake(u, 1)
    tokens: list[int] = []

    def count(block: nn.Module, given: tuple[Any, ...], out: object) -> None:
        tokens.append(given[0].shape[0] * given[0].shape[1])

    u.net.blocks[0].register_forward_hook(count)
    objective = FlowMapMatching(Triangle(), derivative)
    found = objective({"student": u}, batch(), Rng.seeded(2), Shared())
    forward = [*tokens]
    found.value.backward()
    return found.value, {n: p.grad for n, p in u.trained().items() if p.grad is not None}, forward


@pytest.mark.parametrize("spec", [LORA, FULL], ids=["adapters", "whole"])
@pytest.mark.parametrize("derivative", [CENTRAL, ForwardMode()], ids=["difference", "forward mode"])
@pytest.mark.parametrize("long", [0.0, 1.0])
def test_a_step_with_the_history_kept_is_one_without(spec: Far, derivative: Derivative, long: float) -> None:
    spec = evolve(spec, long=long)
    value, gradients, tokens = loss(spec, derivative)
    expected, others, all_tokens = loss(evolve(spec, keep_history=False), derivative)
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert gradients.keys() == others.keys() and any("far_patch" in name for name in others) == (long == 1.0)
    for name, gradient in others.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)
    assert tokens[:-1] == all_tokens[:-1] and tokens[-1] < all_tokens[-1]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("attention", ["dense", "spans"])
def test_calls_of_some_samples_twice_over_are_those_with_their_history(n: int, attention: Any) -> None:
    u, (x, c) = student(attention=attention), example()
    z, cond = forced(u, x, c, n)
    some = torch.tensor([2, 0])
    kept = u.keeping(some)
    u(z, T, R, cond, kept)
    pair = torch.cat([some, some])
    given = z[pair] + 0.1, (T[pair] + 0.01).clamp_max(1.0), R[pair], {name: value[pair] for name, value in cond.items()}
    with torch.no_grad():
        found, expected = u(*given, kept), u(*given)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)

        # planted: the history of other samples, of other weights, of one layer for another
        assert kept is not None and len(kept.memory) == len(u.net.blocks)
        other = Kept(some, [(k.flip(0), v.flip(0)) for k, v in kept.memory])
        assert (u(*given, other) - expected).abs().max() > 1e-3
        assert (u(*given, Kept(some, kept.memory[::-1])) - expected).abs().max() > 1e-3
        shake(u, 5)
        assert (u(*given, kept) - u(*given)).abs().max() > 1e-3


def test_the_call_that_keeps_has_its_whole_gradient_and_one_that_reads_may_have_none() -> None:
    u, (x, c) = student(), example()
    z, cond = forced(u, x, c, 5)

    def gradients(cache: object) -> dict[str, Tensor]:
        u.zero_grad()
        u(z, T, R, cond, cache).square().mean().backward()
        return {name: p.grad.clone() for name, p in u.trained().items() if p.grad is not None}

    kept, plain = u.keeping(torch.arange(3)), gradients(None)
    for name, gradient in gradients(kept).items():
        assert torch.equal(gradient, plain[name]), name
    assert kept is not None and not any(a.requires_grad for pair in kept.memory for a in pair)
    with pytest.raises(ValueError, match="for a gradient with a history that was kept without its graph"):
        u(z, T, R, cond, kept)


def test_it_is_kept_unless_blocks_are_recomputed_or_it_is_told() -> None:
    some = torch.arange(2)
    assert student(checkpointing=True).keeping(some) is None
    assert student(checkpointing=True, keep_history=True).keeping(some) is not None
    assert student(keep_history=False).keeping(some) is None
    u, (x, c) = student(), example()
    kept = u.keeping(some)
    assert torch.equal(u(x[:, :1], T, R, c, kept), u(x[:, :1], T, R, c)) and kept is not None and not kept.memory


def test_recomputation_leaves_it_as_it_is() -> None:
    plain, again = (loss(evolve(LORA, long=1.0, keep_history=True, checkpointing=c)) for c in (False, True))
    torch.testing.assert_close(again[0], plain[0], atol=1e-6, rtol=1e-5)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(again[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_nothing_is_held_of_what_is_not_kept() -> None:
    u: FarFlowMap = student()
    z, cond = forced(u, *example(), 4)
    kept = u.keeping(torch.tensor([1]))
    u(z, T, R, cond, kept)
    assert kept is not None and isinstance(u.net.blocks[0], nn.Module)
    for k, _ in kept.memory:
        assert k.untyped_storage().nbytes() == k.numel() * k.element_size() and len(k) == 1
