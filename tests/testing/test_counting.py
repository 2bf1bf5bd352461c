"""Counts of calls are counts of samples, by whether a graph was built."""

from __future__ import annotations

import torch

from flowmap import FlowMap
from flowmap._types import Role
from flowmap.derivative import EndForwardMode, ForwardMode
from flowmap.testing import CountingFlowMap, GaussianFlowMap, counting
from tests.toys import Toy

Z, T = torch.zeros(5, 1), torch.full((5,), 0.5)


def test_a_call_counts_its_samples_with_and_without_a_graph() -> None:
    u = CountingFlowMap(GaussianFlowMap())
    u(Z, T, T, {})
    with torch.no_grad():
        u(Z[:2], T[:2], T[:2], {})
    assert (u.graph, u.plain) == (5, 2)
    u.reset()
    assert (u.graph, u.plain) == (0, 0)


def test_a_frozen_network_builds_a_graph_only_where_one_comes_in() -> None:
    u = CountingFlowMap(GaussianFlowMap().requires_grad_(False))
    u(Z, T, T, {})
    assert (u.graph, u.plain) == (0, 5)
    u(Z.clone().requires_grad_(True), T, T, {})
    assert (u.graph, u.plain) == (5, 5)


def test_a_forward_mode_derivative_is_one_call() -> None:
    u = CountingFlowMap(GaussianFlowMap())
    with torch.no_grad():
        ForwardMode()(u, Z, T, T / 2, Z, {})
    assert (u.graph, u.plain) == (0, 5)
    assert (u.graph_j, u.plain_j) == (0, 5)
    u(Z, T, T, {})
    assert (u.graph, u.graph_j, u.plain_j) == (5, 0, 5)


def test_a_forward_mode_derivative_with_a_graph_is_a_call_with_a_graph() -> None:
    u = CountingFlowMap(GaussianFlowMap())
    EndForwardMode()(u, Z, T, T / 2, {})
    assert (u.graph, u.graph_j, u.plain, u.plain_j) == (5, 5, 0, 0)
    frozen = CountingFlowMap(GaussianFlowMap().requires_grad_(False))
    EndForwardMode()(frozen, Z, T, T / 2, {})
    assert (frozen.graph, frozen.graph_j, frozen.plain, frozen.plain_j) == (0, 0, 5, 5)
    u.reset()
    assert (u.graph, u.graph_j) == (0, 0)


def test_networks_are_counted_apart() -> None:
    nets: dict[Role, FlowMap] = {"student": GaussianFlowMap(), "teacher": GaussianFlowMap()}
    counted = counting(nets)
    counted["student"](Z, T, T, {})
    assert counted["student"].graph == 5 and counted["teacher"].graph == 0


def test_everything_else_is_the_networks_own() -> None:
    u = Toy(causal=True).build(frozenset({"teacher"}), device=torch.device("cpu"), dtype=torch.float32)["teacher"]
    counted = CountingFlowMap(u)
    x, c = Toy().example()
    assert counted.chunks(4) == (2, 2) and counted.blocks == u.blocks and counted.trained() == {}
    counted.thaw()
    assert counted.trained().keys() == u.trained().keys() != set()
    assert all(torch.equal(a, b) for a, b in zip(counted.extend(None, x, c), u.extend(None, x, c), strict=True))
