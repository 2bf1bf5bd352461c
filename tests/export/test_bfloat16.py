"""A student in bfloat16 in diffusers' own pipelines: the latents are rounded after every step, and need not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
)
from flowmap_wan.narrowed import RoundedState

import flowmap
from flowmap import FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.evaluation.use import EXACT_LATENTS
from tests.export.students import shaken
from tests.export.test_api import FAR_DIGITS, PROMPT, VIDEO
from tests.export.test_forms import LORA, NOISE, off
from tests.test_docs import ROOT, blocks

BF16 = torch.bfloat16
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("narrow")
    LORA.save(shaken(LORA), out / "student")
    far = evolve(FAR_DIGITS, shift=3.0)
    far.save(shaken(far), out / "far")
    return out


class Constant(FlowMap):
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return torch.full_like(z, 0.7109375)  # the same number in bfloat16


def narrow(student: Path) -> Any:
    """Its transformer in bfloat16, as `from_pretrained` of diffusers gives it; the encoders stay float32."""
    far = student.name == "far"
    net = (AnyFlowFARTransformer3DModel if far else AnyFlowTransformer3DModel).from_pretrained(
        student, subfolder="transformer", dtype=BF16
    )
    return (AnyFlowFARPipeline if far else AnyFlowPipeline).from_pretrained(student, transformer=net)


def latents(pipe: Any, steps: int) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    made: torch.Tensor = pipe(PROMPT, num_inference_steps=steps, guidance_scale=1.0, latents=NOISE, **VIDEO).frames
    return made


def errors(student: Path, steps: int) -> tuple[float, float]:
    """Off the student in float32: as diffusers runs it, and with what the card says to paste."""
    kind = AnyFlowFARPipeline if student.name == "far" else AnyFlowPipeline
    exact, pipe = latents(kind.from_pretrained(student), steps), narrow(student)
    rounded = latents(pipe, steps)
    exec(EXACT_LATENTS, {"pipe": pipe})
    kept = latents(pipe, steps)
    assert rounded.dtype == BF16
    return off(rounded.float(), exact), off(kept.float(), exact)


def test_many_steps_add_up_what_diffusers_rounds_and_the_card_mends_it(saved: Path) -> None:
    rounded, kept = errors(saved / "student", 128)
    assert kept < 0.8 * rounded and kept < 0.06, (rounded, kept)


def test_it_runs_in_the_causal_pipeline_too(saved: Path) -> None:
    rounded, kept = errors(saved / "far", 4)
    assert kept < rounded < 0.1, (rounded, kept)


def test_the_documents_say_what_the_card_says() -> None:
    (found,) = [code for _, marks, code in blocks(ROOT / "docs" / "deploy.md", "python") if "exact-latents" in marks]
    assert found == EXACT_LATENTS


def test_the_check_rounds_as_the_scheduler_does() -> None:
    scheduler, u = FlowMapEulerDiscreteScheduler(shift=3.0), Constant()
    scheduler.set_timesteps(7)
    ours, theirs = NOISE, NOISE.to(BF16)
    for t, s, r in zip(scheduler.timesteps, scheduler.sigmas, scheduler.sigmas[1:], strict=False):
        times = s.float().expand(1), r.float().expand(1)
        ours = RoundedState(BF16)(u, ours, *times, {}, None, Rng.seeded(0))
        theirs = scheduler.step(u(theirs, *times, {}), t, theirs, return_dict=False)[0]
        torch.testing.assert_close(ours, theirs.float(), atol=0, rtol=0)


def test_an_export_in_bfloat16_walks_far_enough_to_see_it(saved: Path, tmp_path: Path) -> None:
    made = flowmap.export(saved / "student", "diffusers", tmp_path / "narrow", precision="bf16")
    walks = made.manifest.config["rounded_state"]
    assert set(walks) == {"1 step", "32 steps"} and made.worst is not None and 0 < made.worst < 0.05
    assert all(1e-3 < error < 0.05 for error in walks.values()), walks
    made = flowmap.export(saved / "student", "diffusers", tmp_path / "wide")
    assert made.worst == 0.0 and "rounded_state" not in made.manifest.config
