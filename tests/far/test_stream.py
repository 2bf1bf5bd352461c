"""Videos longer than those of training, watched while they are made."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from flowmap_digits.videos import clips

import flowmap
from flowmap import Rng, sample
from flowmap.rollout import consistency_step
from tests.far.test_checkpoints import CPU, DIGITS, PROMPT, student_of

LATENTS, FRAMES = 12, 23  # more than twice the training length; the VAE makes two frames of a latent, one of the first


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student")
    DIGITS.save(student_of(DIGITS), path)
    return path


@torch.no_grad()
def expected(saved: Path, context: torch.Tensor | None = None) -> torch.Tensor:
    u = DIGITS.load(saved, device=CPU, dtype=torch.float32)
    codec = flowmap.backbone(str(saved)).codec(device=CPU, dtype=torch.float32)
    noise = Rng.seeded(3).noise_like(torch.zeros(1, LATENTS, 4, 8, 8))
    given = None if context is None else codec.encode(context[None])
    return codec.decode(sample(u, noise, codec.encode_prompts([PROMPT]), 2, shift=1.0, context=given))[0]


@pytest.mark.parametrize("given", [0, 1, 5])
def test_a_long_stream_is_the_sample_chunk_after_chunk(saved: Path, given: int) -> None:
    context = clips(1, 0)[0][0, :given].clone() if given else None
    before = None if context is None else context.clone()
    chunks = list(
        flowmap.stream(saved, PROMPT, steps=2, frames=FRAMES, size=(32, 32), seed=3, context=context, device="cpu")
    )
    assert [len(chunk) for chunk in chunks] == [1] + [2] * (LATENTS - 1)
    torch.testing.assert_close(torch.cat(chunks), expected(saved, context), atol=1e-3, rtol=1e-2)
    if context is not None:
        assert torch.equal(context, before)


@torch.no_grad()
def test_a_consistency_student_is_streamed_as_it_samples(saved: Path, tmp_path: Path) -> None:
    import json
    import shutil

    path = shutil.copytree(saved, tmp_path / "student")
    (path / "flowmap.json").write_text(json.dumps({"sampler": "consistency", "latent_shape": [5, 4, 8, 8]}))
    u = DIGITS.load(path, device=CPU, dtype=torch.float32)
    codec = flowmap.backbone(str(path)).codec(device=CPU, dtype=torch.float32)
    noise = Rng.seeded(3).noise_like(torch.zeros(1, 5, 4, 8, 8))
    made = sample(u, noise, codec.encode_prompts([PROMPT]), 2, shift=1.0, step=consistency_step)
    found = torch.cat(list(flowmap.stream(path, PROMPT, steps=2, seed=3, device="cpu")))
    torch.testing.assert_close(found, codec.decode(made)[0], atol=1e-3, rtol=1e-2)


def test_a_window_is_the_whole_history_until_it_drops_some_and_has_no_last_position(saved: Path) -> None:
    given: dict[str, Any] = {"steps": 1, "size": (32, 32), "seed": 3, "device": "cpu"}
    window = flowmap.Window(1, 3)
    short, long = (list(flowmap.stream(saved, PROMPT, frames=9, **given, window=w)) for w in (None, window))
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))
    past = flowmap.stream(saved, PROMPT, frames=131, **given, window=window)
    assert next(past).shape == (1, 3, 32, 32)


def test_a_stream_without_end_goes_on(saved: Path) -> None:
    context = clips(1, 0)[0][0, :1].clone()
    given: dict[str, Any] = {"steps": 1, "size": (32, 32), "device": "cpu", "context": context}
    endless = [flowmap.stream(saved, PROMPT, frames=math.inf, seed=k, **given, window=flowmap.Window()) for k in (3, 4)]
    first, *made = islice(endless[0], 20)
    assert [len(first), *map(len, made)] == [1] + [2] * 19
    assert all(frames.isfinite().all() for frames in made)
    assert float((made[-1] - made[-2]).abs().max()) > 1e-3  # other noise for every chunk
    assert torch.equal(first, next(endless[1])) and not torch.equal(made[0], next(endless[1]))


def test_what_is_not_possible_is_said_before_anything_is_made(saved: Path) -> None:
    with pytest.raises(ValueError, match="65 latent frames: this network has rotary positions for at most 64"):
        flowmap.stream(saved, PROMPT, frames=129, size=(32, 32), device="cpu")
    with pytest.raises(ValueError, match="frames = inf would remember all of a video without end: give a window"):
        flowmap.stream(saved, PROMPT, frames=math.inf, size=(32, 32), device="cpu")
    with pytest.raises(TypeError, match=r"frames = 9.5: must be a whole number, or math.inf"):
        flowmap.stream(saved, PROMPT, frames=9.5, size=(32, 32), device="cpu")
    with pytest.raises(TypeError, match="context is a str"):
        flowmap.stream(saved, PROMPT, frames=FRAMES, size=(32, 32), context="a.png", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames"):
        flowmap.stream(saved, PROMPT, frames=FRAMES, size=(32, 32), context=clips(1, 0)[0][0, :4], device="cpu")
