"""The clips: what a prompt says is what the pixels show."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from flowmap_digits import videos
from flowmap_digits.videos import CANVAS, DIRECTIONS, SPEEDS, Prompt


@pytest.mark.parametrize(
    "prompt,text",
    [
        (Prompt(3, "left", "slowly"), "a three moving left slowly"),
        (Prompt(8, "up", "quickly", bouncing=True), "an eight moving up quickly, bouncing"),
    ],
)
def test_a_prompt_reads_as_a_sentence(prompt: Prompt, text: str) -> None:
    assert prompt.text == text


@pytest.mark.parametrize("fault", [(10, "left", "slowly"), (1, "sideways", "slowly"), (1, "left", "fast")])
def test_a_prompt_refuses_what_no_clip_shows(fault: tuple[int, str, str]) -> None:
    with pytest.raises(ValueError, match="must be in"):
        Prompt(*fault)


def test_the_splits_are_disjoint_and_complete() -> None:
    train, held_out = set(videos.train_prompts()), set(videos.held_out_prompts())
    assert (len(train), len(held_out)) == (144, 16)
    assert not train & held_out
    assert train | held_out == set(videos.all_prompts())
    assert len({prompt.text for prompt in videos.all_prompts()}) == 160


def test_the_held_out_prompts_are_balanced() -> None:
    held_out = videos.held_out_prompts()
    assert {prompt.digit for prompt in held_out} == set(range(10))
    assert Counter(prompt.direction for prompt in held_out) == dict.fromkeys(DIRECTIONS, 4)
    assert Counter(prompt.speed for prompt in held_out) == dict.fromkeys(SPEEDS, 8)
    assert Counter(prompt.bouncing for prompt in held_out) == {False: 8, True: 8}


def test_every_word_and_every_motion_is_trained() -> None:
    train = videos.train_prompts()
    assert {word for p in train for word in p.text.split()} == {w for p in videos.all_prompts() for w in p.text.split()}
    assert len({(p.direction, p.speed, p.bouncing) for p in train}) == 16


def test_a_clip_follows_from_its_seed() -> None:
    (first, prompts), (again, same), (other, _) = (videos.clips(20, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert prompts == same
    assert not torch.equal(first, other)


def test_shape_range_and_colours() -> None:
    batch, prompts = videos.clips(50, 0, "all")
    assert batch.shape == (50, 9, 3, 32, 32)
    assert batch.dtype == torch.float32
    assert len(prompts) == 50
    assert batch.min() == 0 and batch.max() == 1
    assert torch.equal(batch[:, :, 0], batch[:, :, 2])


def test_the_prompts_come_from_the_split() -> None:
    assert set(videos.clips(300, 0, "held_out")[1]) == set(videos.held_out_prompts())
    assert set(videos.clips(300, 0)[1]) <= set(videos.train_prompts())


@pytest.mark.parametrize("prompt", videos.held_out_prompts(), ids=lambda prompt: prompt.text)
def test_the_digit_keeps_its_shape_and_stays_inside(prompt: Prompt) -> None:
    clip = videos.render(prompt, np.random.default_rng(5))[:, 0]
    ink = clip.sum(dim=(1, 2))
    torch.testing.assert_close(ink, ink[:1].expand_as(ink), rtol=0.01, atol=0.0)
    x, y = prompt.velocity
    moved = torch.roll(clip[0], shifts=(y, x), dims=(0, 1))
    torch.testing.assert_close(clip[1], moved, atol=videos.INK, rtol=0.0)


@pytest.mark.parametrize("direction,axis,wall", [("left", 0, 0), ("right", 0, 31), ("up", 1, 0), ("down", 1, 31)])
def test_a_bouncing_digit_touches_the_border(direction: str, axis: int, wall: int) -> None:
    clip = videos.render(Prompt(5, direction, "quickly", bouncing=True), np.random.default_rng(0))[:, 0]
    inked = (clip > videos.INK).amax(dim=axis + 1)
    touching = inked[:, wall].nonzero().flatten().tolist()
    assert len(touching) == 1 and 3 <= touching[0] <= 5


def test_handwriting_is_split_too() -> None:
    train, held_out = (torch.cat(videos._glyphs(images)) for images in ("train", "held_out"))
    assert (len(train), len(held_out)) == (1438, 359)
    assert train.shape[1:] == (CANVAS // 2, CANVAS // 2)


def test_unknown_splits_are_named() -> None:
    with pytest.raises(ValueError, match="'test'"):
        videos.clips(1, 0, "test")  # type: ignore[arg-type]
