"""A step of a network of diffusers on tensors without data computes and holds what a real one does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flowmap_diffusers import Diffusers
from flowmap_diffusers.rows import ROWS
from flowmap_lora import Lora
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowmap import Recipe, Stage, TensorData
from flowmap.data import LatentFolder, Sized
from flowmap.method import Method
from flowmap.methods import anyflow
from flowmap.methods.flow_matching import flow_matching
from flowmap.planning import Machine, plan
from flowmap.planning.trace import trace
from flowmap.training.loop import Trainer

from .helpers import CPU, ROLES, hollow, measured_step

PLANNED = ("cogvideox", "hunyuan_video", "ltx", "qwen_image", "step_video")  # those of the large recipes


def spec(family: str) -> Diffusers:
    return Diffusers(family=family, lora=Lora(4, 4.0), checkpointing=True)


def compared(family: str, method: Callable[[Diffusers], Method]) -> None:
    of = spec(family)
    stage, (x, cond) = Stage(method(of), steps=10, batch=2), of.example(2)
    data = TensorData(x, cond, of.null(cond))
    found = trace(stage, hollow(of), data, 0, 0, 1)
    nets = of.build(ROLES, device=CPU, dtype=torch.float32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        Trainer(nets, stage, data).step(1)
    assert sum(found.parts.values()) == pytest.approx(counter.get_total_flops(), rel=0.06)
    real = measured_step(of.build(ROLES, device=CPU, dtype=torch.float32), stage, data, 1)
    assert sum(found.fullest.held.values()) == pytest.approx(real, rel=0.13)  # networks of half a megabyte


def forward(of: Diffusers) -> Method:
    return anyflow.forward(guidance=1.0, velocity="teacher") if of.distilled else anyflow.forward()


def on_policy(of: Diffusers) -> Method:
    if of.distilled:
        return anyflow.on_policy(guidance=1.0, teacher_guidance=1.0, velocity="teacher", steps=(4,))
    return anyflow.on_policy(steps=(4,))


@pytest.mark.parametrize("family", PLANNED)
def test_stage_one_is_that_of_a_real_step(family: str) -> None:
    compared(family, forward)


@pytest.mark.slow
@pytest.mark.parametrize("family", ROWS)
def test_stage_two_is_that_of_a_real_step(family: str) -> None:
    compared(family, on_policy)


def recipe(family: str) -> Recipe:
    """Of sizes alone, as a plan has them."""
    of = spec(family)
    sizes = {name: size for name, size in of.row.example.items() if name != "z"}
    data = Sized(LatentFolder("nowhere"), x=of.row.example["z"], cond=sizes)
    return Recipe(of, (Stage(flow_matching(role="student"), steps=10, batch=2),), data=data)


@pytest.mark.parametrize("family", [*PLANNED, "hunyuan_video15", "z_image"])
def test_texts_are_whole_in_a_plan(family: str) -> None:
    """Masks are ones, and what takes each text's own length has all of its tokens."""
    of = spec(family)
    x, cond = of.example(2)
    assert all(bool(cond[name].all()) for name in of.row.masks)
    stage = Stage(flow_matching(role="student"), steps=10, batch=2)
    found = trace(stage, hollow(of), TensorData(x, cond, of.null(cond)), 0, 0, 0)
    (planned,) = plan(recipe(family), Machine(gpus=1)).stages
    assert planned.flops == pytest.approx(sum(found.parts.values()))
