"""Students that are bad on purpose, each in one way: which alarms they raise; and what is sound raises none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as nnf
from attrs import evolve, fields
from flowmap_digits import TINY_WAN
from flowmap_digits.videos import held_out_prompts, render_all
from flowmap_wan21 import Wan21
from numpy.random import default_rng
from torch import Tensor

from flowmap import Rng
from flowmap.evaluation import Samples, vitals
from flowmap.evaluation.health import SENTENCES, Alarms, Limits, measured
from flowmap.guidance import Guided
from flowmap.rollout import euler_step, sample

CPU = torch.device("cpu")
SPEC = Wan21(TINY_WAN, lora=None, text_tokens=12, shift=1.0)
TINTS = torch.tensor([[1, 0.6, 0.4], [0.4, 0.8, 1], [0.7, 1, 0.5], [1, 0.5, 0.8]])
PROMPTS = [prompt for prompt in held_out_prompts()[:4] for _ in range(2)]
TEXTS = [prompt.text for prompt in PROMPTS]


def clips(seed: int) -> Tensor:
    """[8, 9, 3, 32, 32]: digits in pale colours on grey, of a tint a prompt."""
    plain = render_all(PROMPTS, default_rng(seed), images="held_out")
    return 0.25 + 0.5 * plain * TINTS.repeat_interleave(2, 0)[:, None, :, None, None]


def pixels(videos: Tensor, frames: int = 9) -> Samples:
    """Latents are pixels, as in a codec that loses nothing."""
    return Samples(videos, videos[:, :frames] * 4 - 1, TEXTS, None)


def over_saturated(v: Tensor, by: float = 1.7) -> Tensor:
    grey = v.mean(2, keepdim=True)
    return (grey + by * (v - grey)).clamp(0, 1)


def blurred(v: Tensor) -> Tensor:
    padded = nnf.pad(v.flatten(0, 1), (2, 2, 2, 2), mode="replicate")
    return nnf.avg_pool2d(padded, 5, stride=1).reshape(v.shape)


def ramp(first: float, last: float) -> Tensor:
    return torch.linspace(first, last, 9)[None, :, None, None, None]


def noise(v: Tensor) -> Tensor:
    return Rng.seeded(3).noise_like(v[:, :, :1])


BAD: Mapping[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "over-saturated": (over_saturated, {"saturation"}),
    "washed out": (lambda v: over_saturated(v, 0.4), {"saturation"}),
    "hard": (lambda v: 0.3 + (v - 0.3) * 1.8, {"contrast", "saturation", "latent_deviation", "motion"}),
    "noisy": (lambda v: v + 0.05 * noise(v), {"grain"}),
    "blurred": (blurred, {"grain"}),
    "static": (lambda v: v[:, :1].expand_as(v), {"motion", "still"}),
    "stuttering": (lambda v: v[:, [0, 0, 2, 2, 4, 4, 6, 6, 8]], {"still"}),
    "restless": (lambda v: v[:, [0, 4, 1, 5, 2, 6, 3, 7, 8]], {"motion"}),
    "collapsed": (lambda v: v[[0, 0, 2, 2, 4, 4, 6, 6]], {"variety"}),
    "drifting": (lambda v: v + ramp(-0.06, 0.06), {"drift"}),
    "too bright": (lambda v: v + 0.1, {"latent_mean"}),
    "spreading": (lambda v: v, {"latent_deviation"}),  # of latents alone, see `made`
}


def made(name: str, v: Tensor) -> Samples:
    found = pixels(BAD[name][0](v))
    return evolve(found, latents=(found.latents - found.latents.mean()) * 1.5) if name == "spreading" else found


@pytest.mark.parametrize("name", BAD)
def test_a_student_that_is_bad_in_one_way_raises_the_alarms_for_it(name: str) -> None:
    teacher, alarms = clips(0), Alarms()
    raised = alarms.raised(measured(made(name, teacher), pixels(teacher), (9,)))
    assert {*raised} == BAD[name][1]
    assert all(text.endswith(")") and "nan" not in text for text in raised.values())


def test_every_alarm_is_raised_by_some_student_alone_or_with_what_it_is_a_part_of() -> None:
    """Contrast is the one that cannot be wrong alone: more of it is more colour and motion, too."""
    alone = {name for _, raised in BAD.values() if len(raised) == 1 for name in raised}
    assert {*SENTENCES} - alone == {"contrast"}
    assert {*SENTENCES} == {f.name for f in fields(Alarms)} - {"stop"}


def test_other_clips_of_the_same_prompts_raise_none() -> None:
    assert not Alarms().raised(measured(pixels(clips(1)), pixels(clips(0)), (9,)))
    same = measured(pixels(clips(0)), pixels(clips(0)), (9,))
    zero = {"latent_mean", "still", "drift", "paired_error"}
    assert same == {name: pytest.approx(0.0 if name in zero else 1.0) for name in same} and len(same) == 10


def test_the_shipped_teacher_at_few_steps_is_sound_beside_itself_at_many() -> None:
    u = SPEC.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    codec = SPEC.codec(device=CPU, dtype=torch.float32)
    guided, cond = Guided(u, 3.0, codec.encode_prompts([""])), codec.encode_prompts(TEXTS[:4])
    starts = Rng.seeded(5).noise_like(torch.zeros(4, 5, 4, 8, 8))

    def samples(steps: int) -> Samples:
        latents = sample(guided, starts, cond, steps, step=euler_step)
        return Samples(codec.decode(latents), latents, TEXTS[:4], None)

    few, many = samples(6), samples(16)
    assert not Alarms().raised(measured(few, many, (5,)))
    frozen = few.videos[:, :1].expand_as(few.videos)
    static = Samples(frozen, codec.encode(frozen), TEXTS[:4], None)
    assert {"motion", "still"} <= {*Alarms().raised(measured(static, many, (5,)))}
    one = few.latents[:1].expand_as(few.latents)
    assert {*Alarms().raised(measured(evolve(few, latents=one), many, (5,)))} == {"variety"}


def test_what_is_measured_is_what_it_says() -> None:
    """Latents whose every measure is known."""
    base = Rng.seeded(1).noise_like(torch.zeros(4, 8, 3, 6, 6))
    base = (base - base.mean((0, 1, 3, 4), keepdim=True)) / base.std((0, 1, 3, 4), keepdim=True, correction=0)
    prompts = ["a", "a", "b", "b"]
    found = vitals.of_latents(2 * base + 0.3, base, prompts, (8,))
    assert found["latent_deviation"] == pytest.approx(2.0, rel=1e-5)
    assert found["latent_mean"] == pytest.approx(0.3, rel=1e-5)
    assert found["variety"] == pytest.approx(2.0, rel=1e-5)
    assert found["paired_error"] == pytest.approx(math.sqrt(1 + 0.09), rel=1e-5)
    assert found["drift"] == pytest.approx(0.0, abs=1e-6)
    moved, first = base.clone(), base[:, :2].std((0, 1, 3, 4), correction=0).double()
    moved[:, 6:] += 0.5
    expected = (0.5 / first).square().mean().div(2).sqrt()
    assert vitals.drift(moved.double(), base.double(), (8,)) == pytest.approx(float(expected), rel=1e-5)
    grown = base.clone()
    grown[:, 4:] *= math.e
    for size in (1, 2, 4):
        here, there = base[:, :size], base[:, 8 - size :]
        deviation = here.std((0, 1, 3, 4), correction=0)
        shift = (math.e - 1) * there.mean((0, 1, 3, 4)) / deviation
        expected = (shift.square().mean() / 2 + 0.5).sqrt()
        chunks = (size,) * (8 // size)
        assert vitals.drift(grown.double(), base.double(), chunks) == pytest.approx(float(expected), rel=1e-4)
    assert math.isnan(vitals.drift(base[:, :1], base[:, :1], (1,)))


def test_single_pictures_have_no_motion_and_no_drift() -> None:
    still = pixels(clips(0)[:, :1], 1)
    assert {*measured(still, still, (1,))}.isdisjoint({"motion", "still", "drift"})


def test_without_a_codec_latents_alone_are_measured() -> None:
    bare = Samples(torch.zeros(8, 0, 3, 1, 1), clips(0), TEXTS, None)
    assert {*measured(bare, bare, (9,))} == {"latent_mean", "latent_deviation", "drift", "variety", "paired_error"}


def test_samples_that_are_not_finite_are_told_and_left_out() -> None:
    teacher = pixels(clips(0))
    latents = teacher.latents.clone()
    latents[3, 0, 0, 0, 0] = math.nan
    found = measured(evolve(teacher, latents=latents), teacher, (9,))
    assert Alarms().raised(found) == {"not_finite": "12% of the samples have numbers that are not finite"}
    every = measured(evolve(teacher, latents=torch.full_like(latents, math.inf)), teacher, (9,))
    assert Alarms().raised(every) == {"not_finite": "100% of the samples have numbers that are not finite"}


def test_a_sentence_says_what_is_wrong_by_how_much_and_the_limit() -> None:
    said = Alarms().raised({"saturation": 1.62, "still": 0.5, "variety": 0.21, "paired_error": 9.0})
    assert [*said.values()] == [
        "samples are 1.62 × as saturated as the teacher's (alarm above 1.4)",
        "50% more of the frames stand still than in the teacher's samples (alarm above 0.25)",
        "samples of one prompt are only 0.21 × as varied as the teacher's (alarm below 0.5)",
    ]
    assert not evolve(Alarms(), saturation=Limits(high=2.0)).raised({"saturation": 1.62})


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Limits(2.0, 1.0), r"Limits.high = 1.0: must be above low = 2.0"),
        (lambda: Alarms(drift=0.5), r"Alarms.drift = 0.5.*Limits"),
        (lambda: Alarms(stop=-1), r"Alarms.stop = -1"),
    ],
)  # fmt: skip
def test_limits_are_checked_when_they_are_made(make: Callable[[], object], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        make()
