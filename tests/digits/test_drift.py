"""Drift and frame quality: zero for what real clips keep, exact for what is done to them, growing with the damage."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as nnf
from flowmap_digits import drift, evaluation
from flowmap_digits.drift import EDGES
from flowmap_digits.videos import HEAVY, held_out_prompts, prompts_with
from torch import Tensor

from flowmap.evaluation import Samples

TEXTS = [prompt.text for prompt in held_out_prompts()] * 4
PROMPTS = prompts_with(TEXTS)


@pytest.fixture(scope="module")
def real() -> Tensor:
    return evaluation.real_clips(TEXTS, 0)


def ramp(by: float) -> Tensor:
    """A gain of every frame: 1, then up or down in steps, [1, 9, 1, 1, 1]."""
    return (1 + by * torch.arange(9)).reshape(1, 9, 1, 1, 1)


def noisy(videos: Tensor, scale: float) -> Tensor:
    noise = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    return (videos + scale * noise).clamp(0, 1)


def blurred(videos: Tensor, times: float) -> Tensor:
    for _ in range(int(times)):
        videos = nnf.avg_pool3d(videos, (1, 3, 3), 1, (0, 1, 1))
    return videos


def test_real_clips_do_not_drift(real: Tensor) -> None:
    """Nor heavy ones; but for the faint margin that a glyph may hold over the border."""
    for videos in (real, evaluation.real_clips(TEXTS, 1, HEAVY)):
        assert max(drift.absolute_drift(videos, PROMPTS, EDGES)) < 1e-3
        assert max(map(abs, drift.signed_drift(videos, PROMPTS, EDGES))) < 1e-3


@pytest.mark.parametrize("by", [0.05, -0.05])
def test_a_gain_is_the_drift(real: Tensor, by: float) -> None:
    expected = [by * sum(range(a, b)) / (b - a) for a, b in pairwise(EDGES)]
    signed = drift.signed_drift(real * ramp(by), PROMPTS, EDGES)
    assert signed == pytest.approx(expected, abs=1e-3)
    assert drift.absolute_drift(real * ramp(by), PROMPTS, EDGES) == pytest.approx(list(map(abs, expected)), abs=1e-3)


def test_clips_that_swell_and_clips_that_fade_cancel_in_the_signed_drift_alone(real: Tensor) -> None:
    both = torch.cat([real[:32] * ramp(0.05), real[:32] * ramp(-0.05)])
    assert max(map(abs, drift.signed_drift(both, PROMPTS, EDGES))) < 1e-3
    assert drift.absolute_drift(both, PROMPTS, EDGES)[-1] == pytest.approx(0.375, abs=1e-3)


def test_a_clip_that_starts_empty_is_no_error() -> None:
    videos = torch.zeros(2, 9, 3, 32, 32)
    videos[:, 8, :, 4:6, 4:6] = 1.0
    assert drift.signed_drift(videos, PROMPTS[:2], EDGES) == [-1, -1, -1, -1, 1]  # 0 and 4 white pixels, against 1


def test_frames_of_real_clips_are_near_real_frames(real: Tensor) -> None:
    """More so with more clips: the rest is their number."""
    few = drift.frame_distance(real, PROMPTS, EDGES)
    many = drift.frame_distance(evaluation.real_clips(TEXTS * 8, 3), PROMPTS * 8, EDGES)
    assert max(few) < 0.1 and max(many) < 0.02
    assert max(few) - min(few) < 1e-3  # every frame shows the same glyph


DAMAGE: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "blur": (blurred, (1, 2, 3)),
    "gain": (lambda videos, by: videos * (1 - by), (0.1, 0.2, 0.4)),
    "noise": (noisy, (0.1, 0.2, 0.4)),
}


@pytest.mark.parametrize("damage, degrees", DAMAGE.values(), ids=DAMAGE.keys())
def test_the_distance_grows_with_the_damage(
    real: Tensor, damage: Callable[[Tensor, float], Tensor], degrees: tuple[float, ...]
) -> None:
    found = [drift.frame_distance(x, PROMPTS, EDGES)[2] for x in (real, *(damage(real, d) for d in degrees))]
    assert found[0] < 0.75 * found[1] < 0.5 * found[2] < 0.4 * found[3]


def test_the_distance_of_glyphs_is_zero_on_average_for_real_clips_however_few() -> None:
    """Over 24 sets of 32 clips, where `frame_distance` is far above what 512 clips have."""
    sets = [evaluation.real_clips(TEXTS[:32], seed) for seed in range(24)]
    found = torch.tensor([drift.glyph_distance(one, PROMPTS[:32], EDGES)[2] for one in sets])
    assert abs(found.mean()) < 2.5 * found.std() / math.sqrt(24) and found.min() < 0 < found.max()


@pytest.mark.parametrize("damage, degrees", DAMAGE.values(), ids=DAMAGE.keys())
def test_the_distance_of_glyphs_grows_with_the_damage(
    real: Tensor, damage: Callable[[Tensor, float], Tensor], degrees: tuple[float, ...]
) -> None:
    found = [drift.glyph_distance(x, PROMPTS, EDGES)[2] for x in (real, *(damage(real, d) for d in degrees))]
    assert found == sorted(found) and found[-1] > 4 * max(found[0], 0.0)


def test_the_distance_of_glyphs_is_taken_prompt_by_prompt(real: Tensor) -> None:
    """The same clips under each other's prompts are far; one clip of a prompt is no measurement."""
    others = PROMPTS[1:] + PROMPTS[:1]
    own, crossed = (drift.glyph_distance(real, asked, EDGES)[2] for asked in (PROMPTS, others))
    assert crossed > own + 0.1
    with pytest.raises(ValueError, match="must be two of a prompt at least"):
        drift.glyph_distance(real[:16], PROMPTS[:16], EDGES)


def test_only_the_chunk_that_is_damaged_is_worse(real: Tensor) -> None:
    spoilt = torch.cat([real[:, :5], blurred(real[:, 5:], 3)], 1)
    whole, found = (drift.frame_distance(x, PROMPTS, EDGES) for x in (real, spoilt))
    assert found[:3] == pytest.approx(whole[:3], rel=0.02)
    assert min(found[3:]) > 4 * max(whole)


def test_the_window_follows_the_digit_by_whole_and_half_pixels(real: Tensor) -> None:
    """A frame's features do not depend on where the digit is: of a digit in the middle, moved."""
    glyph = drift.glyphs(real[:4])
    still = real[:4, :1].expand_as(real[:4])
    torch.testing.assert_close(drift.glyphs(still), glyph, atol=2e-3, rtol=0)
    bar = torch.zeros(1, 2, 3, 32, 32)
    bar[0, 0, :, 10:20, 10:14] = 1.0
    bar[0, 1, :, 10:20, 10:15] = 1.0
    bar[0, 1, :, 10:20, [10, 14]] = 0.5  # half a pixel to the right
    moved = drift.glyphs(bar)[0]
    torch.testing.assert_close(moved[0].sum(), moved[1].sum(), atol=1e-6, rtol=0)
    assert float((moved[0] - moved[1]).abs().max()) < 0.12
    centre = (moved.unflatten(1, (8, 8)).sum(1) * torch.arange(8)).sum(1) / moved.sum(1)
    torch.testing.assert_close(centre, torch.full((2,), 3.5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_heavy_frames_are_far_from_plain_ones_and_near_their_own() -> None:
    heavy = evaluation.real_clips(TEXTS, 0, HEAVY)
    own, plain = (max(drift.frame_distance(heavy, PROMPTS, EDGES, style)) for style in (HEAVY, evaluation.PLAIN))
    assert own < 0.1 and plain > 5 * own


@pytest.mark.parametrize("edges", [(), (0,), (1, 9), (0, 8), (0, 5, 5, 9), (0, 10)])
def test_chunks_must_cover_the_clip(real: Tensor, edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must increase from 0 to the clip's 9 frames"):
        drift.signed_drift(real, PROMPTS, edges)


def test_a_curve_can_be_asked_for_the_drift_of_the_last_chunk(real: Tensor) -> None:
    curve = evaluation.curve(metrics=(evaluation.intensity_drift,))
    metric = curve.metrics[-1]
    assert (metric.name, metric.better) == ("intensity_drift", "lower")
    found = metric.measure(Samples(real * ramp(0.05), real, TEXTS, None))
    assert math.isclose(found, 0.375, abs_tol=1e-3)
