"""Wan2.2 TI2V-5B, text to video: diffusers tells every token its time, here they share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import AnyFlowFARPipeline, AnyFlowPipeline, DiffusionPipeline
from flowmap_far import Far
from flowmap_wan import Lora
from flowmap_wan21 import Wan21

from flowmap import Rng, backbone, sample
from flowmap.data.synth import SYNTH, Synthesis
from flowmap.guidance import Guided
from flowmap.rollout import euler_step, walk
from tests.wan21 import pipelines
from tests.wan21.test_network import CPU, shake

PROMPT, SIZE = "a three moving left slowly", {"num_frames": 5, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> tuple[Path, DiffusionPipeline]:
    folder = tmp_path_factory.mktemp("ti2v") / "wan"
    return folder, pipelines.ti2v(folder)


def noise() -> torch.Tensor:
    return Rng.seeded(5).noise_like(torch.zeros(1, 2, 48, 4, 4))


@torch.no_grad()
def test_the_teacher_is_diffusers_own_pipeline(made: tuple[Path, DiffusionPipeline]) -> None:
    """With guidance, from noise to pixels; at the pipeline's own times, each of which it gives to every token."""
    folder, pipe = made
    spec = backbone(str(folder))
    u = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    codec = spec.codec(device=CPU, dtype=torch.float32)
    z = noise()
    asked = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": z.transpose(1, 2), **SIZE}
    theirs = pipe(PROMPT, negative_prompt="", output_type="latent", **asked).frames.transpose(1, 2)
    cond, null = codec.encode_prompts([PROMPT]), codec.encode_prompts([""])
    ours = walk(Guided(u, 3.0, null), z, cond, pipe.scheduler.sigmas, Rng.seeded(0), step=euler_step)
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-6
    assert codec.latent_shape(5, 64, 64) == z.shape[1:]
    video = pipe(PROMPT, negative_prompt="", output_type="pt", **asked).frames
    torch.testing.assert_close(codec.decode(ours), video, atol=1e-5, rtol=1e-5)
    assert video.shape == (1, 5, 3, 64, 64)
    chunks = [*codec.decode_chunks(ours.split(1, 1))]
    torch.testing.assert_close(torch.cat(chunks, 1), video, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="height and width multiples of 32"):
        codec.latent_shape(5, 48, 64)


@torch.no_grad()
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=2.0)], ids=["whole", "lora"])
def test_a_student_is_an_anyflow_pipeline(lora: Any, made: tuple[Path, DiffusionPipeline], tmp_path: Path) -> None:
    spec = Wan21(made[0], lora=lora, shift=5.0)
    student = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    shake(student)
    spec.save(student, tmp_path)
    pipe = AnyFlowPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    z, codec = noise(), spec.codec(device=CPU, dtype=torch.float32)
    asked = {"num_inference_steps": 3, "latents": z.transpose(1, 2), "output_type": "latent", **SIZE}
    theirs = pipe(PROMPT, **asked).frames.transpose(1, 2)
    ours = sample(student, z, codec.encode_prompts([PROMPT]), 3, shift=5.0)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    again = backbone(str(tmp_path))
    assert type(again) is Wan21
    loaded = again.load(tmp_path, device=CPU, dtype=torch.float32)
    cond = codec.encode_prompts([PROMPT])
    torch.testing.assert_close(sample(loaded, z, cond, 3, shift=5.0), ours, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_causal_student_of_it(made: tuple[Path, DiffusionPipeline], tmp_path: Path) -> None:
    """Chunk after chunk with its history, saved and loaded; diffusers has it as a pipeline, too."""
    spec = Far(made[0], lora=None, shift=5.0, partition=(1, 1), full=2)
    student = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    spec.save(student, tmp_path)
    cond = spec.codec(device=CPU, dtype=torch.float32).encode_prompts([PROMPT])
    loaded = backbone(str(tmp_path)).load(tmp_path, device=CPU, dtype=torch.float32)
    ours = sample(student, noise(), cond, 2, shift=5.0)
    torch.testing.assert_close(sample(loaded, noise(), cond, 2, shift=5.0), ours, atol=2e-5, rtol=1e-4)
    assert type(AnyFlowFARPipeline.from_pretrained(tmp_path).transformer).__name__ == "AnyFlowFARTransformer3DModel"


@torch.no_grad()
def test_data_of_it(made: tuple[Path, DiffusionPipeline], tmp_path: Path) -> None:
    spec = evolve(backbone(str(made[0])), lora=None)
    data = Synthesis((PROMPT,), (5, 64, 64), steps=2, guidance=3.0).run(spec, tmp_path, device=CPU)
    assert data is not None
    u = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    codec = spec.codec(device=CPU, dtype=torch.float32)
    z = Rng.seeded(0, SYNTH, 0).noise_like(torch.zeros(1, 2, 48, 4, 4))
    guided = Guided(u, 3.0, codec.encode_prompts([""]))
    right = sample(guided, z, codec.encode_prompts([PROMPT]), 2, shift=5.0, step=euler_step)
    torch.testing.assert_close(data.batch([0]).x, right, atol=1e-5, rtol=1e-5)
