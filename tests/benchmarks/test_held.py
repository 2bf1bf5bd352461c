"""Bytes that are alive at once, on programs that can be counted by hand."""

import torch

from benchmarks.held import Held, peak

KB = 4000  # of a thousand float32


def test_what_is_freed_and_what_is_seen_again_does_not_count():
    x = torch.zeros(1000)

    def run():
        a = x + 1
        b = a * 2
        del a  # one left
        c = b.view(10, 100)[2:]  # the same storage
        return c.exp() + x.view(10, 100)[2:]

    assert peak(run, x) == KB + 2 * 0.8 * KB
    assert peak(run) == peak(run, x) + KB  # x, seen through a view


def test_a_graph_is_held_until_it_is_walked_back():
    w = torch.ones(1000, requires_grad=True)

    def run(graph):
        with torch.set_grad_enabled(graph):
            y = w
            for _ in range(10):
                y = y.sin()
        return y

    with Held(w) as held:
        y = run(graph=True)
        assert held.now == 10 * KB
        y.sum().backward()
        w.grad = y = None
    assert held.now == 0 and held.peak > 11 * KB
    assert peak(lambda: run(graph=False), w) == 2 * KB
