"""What walking each chunk again in the backward pass saves of memory, and costs in time, by the number of chunks."""

from __future__ import annotations

import runpy

import pytest
import torch
from attrs import evolve
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowmap import Rng
from flowmap.rollout import walk
from flowmap.times import euler_grid

from .conftest import ROOT
from .held import peak
from .paired import Paired, timed

BATCH, LATENT, TEXT, JUMPS, REPEATS = 8, (4, 8, 8), (12, 32), 3, 5


@pytest.fixture(scope="module")
def far():
    """The backbone of recipes/tiny_far.py, which makes a video frame by frame."""
    return runpy.run_path(str(ROOT / "recipes" / "tiny_far.py"))["RECIPE"].backbone


def operations(run):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.benchmark(group="replay")
@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_walking_again_holds_the_graph_of_one_chunk(benchmark, far, chunks):
    spec = evolve(far, partition=(1,) * chunks)
    u = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    rng, grid = Rng.seeded(0), euler_grid(JUMPS, spec.shift)
    noise = rng.noise_like(torch.zeros(BATCH, chunks, *LATENT))
    cond = {"text": rng.noise_like(torch.zeros(BATCH, *TEXT))}
    weight = rng.noise_like(noise)

    def backward(replay):
        (walk(u, noise, cond, grid, rng, replay=replay) * weight).sum().backward()
        u.zero_grad()

    found = Paired.measure(
        benchmark, timed(lambda case: backward(True)), timed(lambda case: backward(False)), repeats=REPEATS
    )
    there = [*u.parameters(), *u.buffers(), noise, weight, grid, *cond.values()]
    held = {replay: peak(lambda replay=replay: backward(replay), *there) for replay in (False, True)}
    spent = {replay: operations(lambda replay=replay: backward(replay)) for replay in (False, True)}
    benchmark.extra_info |= {
        "subject": f"a rollout of {chunks} chunk{'s' * (chunks != 1)}, walked again",
        "reference": "the same with the graph of all chunks",
        **found.summary(),
        "peak_bytes": held[True],
        "reference_peak_bytes": held[False],
        "peak_ratio": held[True] / held[False],
        "flop_ratio": spent[True] / spent[False],
    }
    assert held[True] <= held[False] * (1.1 if chunks == 1 else 2 / chunks)
