"""The clips: what a prompt says is what the pixels show."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from flowmap_digits import videos
from flowmap_digits.videos import CANVAS, DIRECTIONS, HEAVY, SPEEDS, Prompt, Style


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
    with pytest.raises(ValueError, match="must be"):
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


CLIPS = {  # sha256 of clips as they were before there were styles: the data of students that exist
    (64, 0, "all", "train"): "8957aeaaa724306d247e5e820b2f58612305f9fb53ad8bfd2002c669a8e6d72d",
    (64, 5, "train", "train"): "8c53dd8a0fe0e38f27313aea21bc9b97e6664250da0ee06be3760a2926b8f527",
    (32, 3, "held_out", "held_out"): "41455c8e8e7c1def779648b42cd68da811862ac5381acdbcb356d303b6dd945c",
}


@pytest.mark.parametrize("asked, expected", CLIPS.items())
def test_plain_clips_stay_the_same_to_the_byte(asked: tuple[Any, ...], expected: str) -> None:
    count, seed, split, images = asked
    for style in ({}, {"style": Style()}):
        batch, _ = videos.clips(count, seed, split, images=images, **style)
        assert hashlib.sha256(batch.contiguous().numpy().tobytes()).hexdigest() == expected


def test_heavy_clips_are_of_the_same_prompts_with_more_ink() -> None:
    plain, prompts = videos.clips(50, 0, "all")
    heavy, same = videos.clips(50, 0, "all", style=HEAVY)
    assert prompts == same
    assert heavy.shape == plain.shape and heavy.min() == 0 and heavy.max() == 1
    grown = heavy[:, 0].sum(dim=(1, 2, 3)) / plain[:, 0].sum(dim=(1, 2, 3))
    assert float(grown.min()) > 1.3 and float(grown.max()) < 1.8


def test_emboldening_is_twice_the_mean_cut_at_white() -> None:
    dot = torch.zeros(1, 16, 16)
    dot[0, 0, 0] = 0.9
    bold = videos._embolden(dot)
    assert bold.shape == (1, 18, 18)
    torch.testing.assert_close(bold[0, :3, :3], torch.full((3, 3), 0.2))  # centred on (1, 1): nothing is cut off
    assert float(bold.sum()) == pytest.approx(9 * 0.2)
    assert videos._embolden(torch.ones(1, 16, 16)).max() == 1


@pytest.mark.parametrize("prompt", videos.held_out_prompts(), ids=lambda prompt: prompt.text)
def test_a_heavy_digit_goes_on_by_whole_pixels_at_half_the_speed(prompt: Prompt) -> None:
    """Its ink stays, and each move is the one that `speeds` says, to and fro."""
    clip = videos.render(prompt, np.random.default_rng(5), style=HEAVY)[:, 0]
    ink = clip.sum(dim=(1, 2))
    torch.testing.assert_close(ink, ink[:1].expand_as(ink), rtol=0.01, atol=0.0)
    speeds = HEAVY.speeds(prompt)
    assert speeds == ([0, 1] * 4 if prompt.speed == "slowly" else [1] * 8)
    x, y = videos.DIRECTIONS[prompt.direction]
    place, turned = 0, False
    for frame, step in enumerate(speeds):
        forth = torch.roll(clip[0], shifts=((place + step) * y, (place + step) * x), dims=(0, 1))
        here = not turned and torch.allclose(clip[frame + 1], forth, atol=videos.INK)
        turned = turned or not here
        place += step if here else -step
        seen = torch.roll(clip[0], shifts=(place * y, place * x), dims=(0, 1))
        torch.testing.assert_close(clip[frame + 1], seen, atol=videos.INK, rtol=0.0)
    assert turned == prompt.bouncing


@pytest.mark.parametrize("pace", [0.0, 1.5])
def test_a_pace_that_does_not_fit_is_refused(pace: float) -> None:
    with pytest.raises(ValueError, match=r".pace = .*: must be"):
        Style(pace=pace)


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
