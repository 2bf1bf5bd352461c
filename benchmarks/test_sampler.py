"""What sampling costs beside the network's calls, and beside diffusers' own pipeline for the same student."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from attrs import evolve
from flowmap_digits.videos import all_prompts

from flowmap import Rng, sample
from flowmap.times import euler_grid

from .paired import Paired, timed

BATCH, LATENT, PIXELS, FRAMES = 4, (5, 4, 8, 8), 32, 9
REPEATS, SHIFT = 9, 3.0


def counted(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


@pytest.fixture(scope="module")
def spec(tiny_wan):
    """Every position of the text is kept, as the pipeline keeps it."""
    return evolve(tiny_wan, text_tokens=tiny_wan.text_length, shift=SHIFT)


@pytest.fixture(scope="module")
def student(spec):
    student = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    with torch.no_grad():
        for i, p in enumerate(student.trained().values()):  # the copied embedder is moved, so that r matters
            p.add_(0.02 * Rng.seeded(1, i).noise_like(p))
    return student


@pytest.fixture(scope="module")
def inputs(spec):
    codec = spec.codec(device=torch.device("cpu"), dtype=torch.float32)
    cond = codec.encode_prompts([prompt.text for prompt in all_prompts()[:BATCH]])
    return Rng.seeded(0).noise_like(torch.zeros(BATCH, *LATENT)), cond


@pytest.fixture(scope="module")
def pipeline(spec, student, tmp_path_factory):
    """The saved student, as somebody without flowmap loads it."""
    from diffusers import AnyFlowPipeline

    path = tmp_path_factory.mktemp("student")
    spec.save(student, path)
    pipeline = AnyFlowPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.benchmark(group="sampler")
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_over_the_bare_calls(benchmark, spec, student, inputs, steps):
    noise, cond = inputs
    grid = euler_grid(steps, spec.shift)
    times = [t.expand(BATCH) for t in grid]

    @torch.no_grad()
    def bare(case):
        for t, r in pairwise(times):
            student(noise, t, r, cond)

    found = Paired.measure(
        benchmark,
        timed(lambda case: sample(student, noise, cond, steps, shift=spec.shift)),
        timed(bare),
        repeats=REPEATS,
    )
    benchmark.extra_info |= {
        "subject": f"flowmap.sample, {counted(steps, 'step')}",
        "reference": f"{counted(steps, 'call')} of the network",
        **found.summary(),
    }


@pytest.mark.benchmark(group="sampler")
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_beside_the_pipeline(benchmark, spec, student, pipeline, inputs, steps):
    noise, cond = inputs

    def ours(case):
        return sample(student, noise, cond, steps, shift=spec.shift)

    def theirs(case):
        options = {"height": PIXELS, "width": PIXELS, "num_frames": FRAMES, "num_inference_steps": steps}
        latents = noise.transpose(1, 2)
        return pipeline(prompt_embeds=cond["text"], latents=latents, output_type="latent", **options).frames.transpose(
            1, 2
        )

    difference = float((ours(0) - theirs(0)).abs().max())
    found = Paired.measure(benchmark, timed(ours), timed(theirs), repeats=REPEATS)
    benchmark.extra_info |= {
        "subject": f"flowmap.sample, {counted(steps, 'step')}",
        "reference": f"AnyFlowPipeline, {counted(steps, 'step')}",
        **found.summary(),
        "largest_difference_of_latents": difference,
    }
    assert difference <= 1e-4
