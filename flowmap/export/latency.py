"""How long the student takes, eager, compiled by torch, and exported, side by side in one run: latency.json."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from .._types import Rng
from ..kernels import compiler
from ..model import FlowMap
from ..rollout import sample
from .backend import quiet
from .family import Family

COMPILED = "torch.compile"


def compiled(u: FlowMap) -> FlowMap:
    """A copy that shares every tensor, with its repeated blocks compiled: one compilation, however many there are.

    The whole network, where it names no blocks.
    """
    new = copy.deepcopy(u, {id(t): t for t in (*u.parameters(), *u.buffers())})
    for block in new.blocks or (new,):
        block.compile()
    return new


@torch.no_grad()
def latency(
    nets: Mapping[str, FlowMap],
    family: Family,
    u: FlowMap,
    sizes: Mapping[str, int],
    repeats: int = 3,
    steps: int = 4,
    compile: bool | None = None,
) -> dict[str, Any]:
    """Seconds of one call and of a walk of `steps`, the least of several; taking turns, so that all share luck.

    compile: measure `u` under torch.compile too; None is on a GPU alone. All run on as many threads as this process
    has, OMP_NUM_THREADS. What cannot be measured is in "not measured", with the reason.
    """
    z, cond = family.example(u, sizes, Rng.seeded(13))
    first = u.chunks(z.shape[1])[0] if z.ndim > 1 else 1
    at, to = (torch.full((len(z),), s, device=z.device) for s in (0.75, 0.25))

    def runs(net: FlowMap) -> dict[str, Callable[[], object]]:
        return {
            "call": partial(net, z[:, :first], at, to, cond),
            f"{steps} steps": partial(sample, net, z, cond, steps),
        }

    timed, missing = {name: runs(net) for name, net in nets.items()}, {}
    reason = _refusal(z.device, compile)
    if reason is None:
        try:
            with quiet():
                fast = runs(compiled(u))
                for run in fast.values():
                    run()  # compiles, for every shape that it meets
            timed[COMPILED] = fast
        except Exception as error:  # a compiler's own, of any kind: nothing of the export depends on it
            said = next(iter(str(error).strip().splitlines()), "")
            reason = f"{type(error).__name__}: {said}"
    if reason is not None:
        missing[COMPILED] = reason

    found: dict[str, dict[str, float]] = {name: {} for name in timed}
    for each in timed.values():
        each["call"]()  # warm
    for _ in range(repeats):
        for name, each in timed.items():
            for key, run in each.items():
                value = seconds(run, z.device)
                found[name][key] = min(value, found[name].get(key, value))
    threads = torch.get_num_threads()
    return {"sizes": dict(sizes), "repeats": repeats, "threads": threads, "seconds": found, "not measured": missing}


def _refusal(device: torch.device, compile: bool | None) -> str | None:
    """Why nothing is compiled."""
    if compile is False:
        return "not asked for"
    if compile is None and device.type != "cuda":
        return "on a CPU only where it is asked for: compile=True, --compile"
    if device.type != "cuda" and compiler() is None:
        return "needs a C++ compiler: install g++, or name one in CXX"
    return None


def seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
