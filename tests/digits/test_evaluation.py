"""The digits' metrics tell real clips of the right prompts from everything else."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch
from flowmap_digits import evaluation
from flowmap_digits.data import MovingDigits
from flowmap_digits.videos import HEAVY, PLAIN, Style, held_out_prompts, train_prompts
from torch import Tensor

from flowmap.evaluation import Samples
from flowmap.recipe import describe

TEXTS = [prompt.text for prompt in held_out_prompts()] * 4


def measured(videos: Tensor, texts: list[str] = TEXTS) -> dict[str, float]:
    samples = Samples(videos, videos, texts, None, beside())
    return {metric.name: metric.measure(samples) for metric in (*evaluation.METRICS, evaluation.frechet_distance)}


@cache
def beside(style: Style = PLAIN) -> Samples:
    """Other real clips; latents are videos here."""
    videos = evaluation.real_clips(TEXTS * 2, 99, style)
    return Samples(videos, videos, TEXTS * 2, None)


@pytest.fixture(scope="module")
def real() -> Tensor:
    return evaluation.real_clips(TEXTS, 0)


def test_real_clips_are_nearly_perfect(real: Tensor) -> None:
    found = measured(real)
    assert found["frechet_distance"] < 1.0
    assert abs(found["energy_distance"]) < 0.01 and abs(found["feature_distance"]) < 0.05
    assert found["variety"] == pytest.approx(1.0, abs=0.1)
    assert found["label_accuracy"] > 0.95
    assert found["direction_accuracy"] == 1.0
    assert found["speed_error"] < 0.01
    assert math.isnan(found["endpoint_error"])


def test_noise_is_not(real: Tensor) -> None:
    found = measured(torch.rand(real.shape, generator=torch.Generator().manual_seed(0)))
    assert found["frechet_distance"] > 20
    assert found["energy_distance"] > 0.2 and found["feature_distance"] > 1
    assert found["label_accuracy"] < 0.3


def test_the_wrong_prompts_are_noticed(real: Tensor) -> None:
    found = measured(real, TEXTS[5:] + TEXTS[:5])
    assert found["frechet_distance"] < 1.0  # the same videos, as a set
    assert found["energy_distance"] > 0.02 and found["feature_distance"] > 1  # prompt by prompt
    assert max(found["label_accuracy"], found["direction_accuracy"]) < 0.6


def test_one_clip_for_every_prompt_is_a_collapse(real: Tensor) -> None:
    found = measured(real[:1].expand_as(real))
    assert found["frechet_distance"] > 20 and found["energy_distance"] > 0.1
    assert found["variety"] == 0.0


def test_real_clips_differ_by_seed_and_not_by_call(real: Tensor) -> None:
    assert torch.equal(evaluation.real_clips(TEXTS, 0), real)
    assert not torch.equal(evaluation.real_clips(TEXTS, 1), real)


def test_the_prompts_are_in_no_training_clip() -> None:
    curve = evaluation.curve()
    assert set(curve.prompts).isdisjoint(prompt.text for prompt in train_prompts())
    assert curve.metrics[0].name == "energy_distance"
    assert MovingDigits().seed >= 0


def test_a_curve_of_another_style_compares_with_real_clips_of_it() -> None:
    """Plain clips are far from heavy ones, and too fast; heavy ones are as near as plain ones are to plain."""
    curve = evaluation.curve(style=HEAVY)
    plain, heavy = (evaluation.real_clips(TEXTS, 0, style) for style in (PLAIN, HEAVY))
    assert curve.real is not None and torch.equal(curve.real(TEXTS, 0), heavy)

    def judged(videos: Tensor) -> dict[str, float]:
        samples = Samples(videos, videos, TEXTS, None, beside(HEAVY))
        return {metric.name: metric.measure(samples) for metric in curve.metrics}

    assert judged(heavy)["feature_distance"] < 0.05 and judged(heavy)["speed_error"] < 0.01
    assert judged(plain)["feature_distance"] > 0.2 and judged(plain)["speed_error"] == pytest.approx(0.75, abs=0.01)


def test_a_plain_curve_knows_nothing_of_styles() -> None:
    assert evaluation.curve() == evaluation.curve(style=PLAIN)
    told = json.dumps(describe(evaluation.curve()))
    assert '"measure": "flowmap_digits.evaluation.feature_distance"' in told and "style" not in told
    assert evaluation.curve().digest() != evaluation.curve(style=HEAVY).digest()
    assert '"<' not in json.dumps(describe(evaluation.curve(style=HEAVY, metrics=(evaluation.intensity_drift,))))


def test_data_of_another_style_are_other_data() -> None:
    class Codec:
        """Latents are videos; a text is its length."""

        def encode_prompts(self, texts: list[str]) -> dict[str, Tensor]:
            return {"text": torch.tensor([[float(len(text))] for text in texts])}

        def encode(self, videos: Tensor) -> Tensor:
            return videos.clone()

    class Backbone:
        def codec(self, **unused: object) -> Codec:
            return Codec()

    plain, heavy = (
        MovingDigits(8, style=style).load(Backbone(), None, device=torch.device("cpu")).batch(range(8))  # type: ignore[arg-type]
        for style in (PLAIN, HEAVY)
    )
    assert torch.equal(plain.cond["text"], heavy.cond["text"])
    assert heavy.x.sum() > 1.3 * plain.x.sum()


def test_an_unknown_prompt_is_named() -> None:
    with pytest.raises(ValueError, match="'a cat' is no prompt of moving digits"):
        evaluation.real_clips(["a cat"], 0)
