"""What an iteration costs, in iterations of plain flow matching of the same network."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from attrs import evolve
from flowmap_wan21 import Lora, Wan21

from flowmap import AdamW, Rng, Stage, TensorData
from flowmap.method import Method
from flowmap.methods import anyflow
from flowmap.methods.flow_matching import flow_matching
from flowmap.model import FlowMap
from flowmap.planning.flops import flops_by_part, flops_of_call, total
from flowmap.testing import counting
from flowmap.training.loop import Trainer

from .paired import Paired, timed

BATCH, CASES, REPEATS = 8, 8, 5  # a case is an iteration: stage 2 makes two or three jumps in it
LATENT, TEXT = (5, 4, 8, 8), (12, 32)
SHIFT = 3.0
ROLES = ("student", "teacher", "critic")
METHODS = {"stage 1": anyflow.forward(shift=SHIFT), "stage 2": anyflow.on_policy(shift=SHIFT)}
PLAIN = flow_matching(role="student", shift=SHIFT)
LORAS = {"full rank": None, "LoRA of rank 32": Lora(32, 32.0)}


def data() -> TensorData:
    rng = Rng.seeded(0)
    x, text = (rng.noise_like(torch.zeros(64, *shape)) for shape in (LATENT, TEXT))
    return TensorData(x, {"text": text}, {"text": torch.zeros(1, *TEXT)})


def stage(method: Method) -> Stage:
    return Stage(method, steps=CASES, batch=BATCH, optimizer=AdamW(lr=1e-6))


def networks(spec: Wan21) -> Mapping[str, FlowMap]:
    return spec.build(frozenset(ROLES), device=torch.device("cpu"), dtype=torch.float32)


def flops(method: Method, spec: Wan21) -> dict[str, float]:
    return flops_by_part(stage(method), networks(spec), data(), CASES)


def calls(method: Method, spec: Wan21) -> dict[str, float]:
    """A sample: with a graph G, without F, by role."""
    nets = counting(networks(spec))
    trainer = Trainer(nets, stage(method), data())
    for iteration in range(CASES):
        trainer.step(iteration)
    scale = 1 / (CASES * BATCH)
    counts = {f"{role} G": nets[role].graph for role in ROLES} | {f"{role} F": nets[role].plain for role in ROLES}
    return {name: count * scale for name, count in counts.items() if count}


@pytest.mark.benchmark(group="step_cost")
@pytest.mark.parametrize("rank", LORAS)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_over_a_step_of_flow_matching(benchmark, tiny_wan, name, rank):
    spec, method = evolve(tiny_wan, lora=LORAS[rank]), METHODS[name]
    nets = networks(spec)
    subject, reference = (Trainer(nets, stage(m), data()) for m in (method, PLAIN))
    found = Paired.measure(benchmark, timed(subject.step), timed(reference.step), cases=CASES, repeats=REPEATS)
    plain, parts = flops(PLAIN, spec), flops(method, spec)
    batch = data().batch(range(BATCH))
    one = flops_of_call(networks(spec)["student"], batch.x, batch.cond)
    benchmark.extra_info |= {
        "subject": f"{name}, {rank}",
        "reference": "a flow-matching step of the student",
        **found.summary(),
        "flop_ratio": total(parts) / total(plain),
        "flops_in_calls": {part: count / one for part, count in parts.items()},
        "flow_matching_in_calls": {part: count / one for part, count in plain.items()},
        "flops_of_call": one,
        "calls": calls(method, spec),
    }
    assert total(parts) > total(plain)
