"""The distances are right on average at every number of samples, and less variety never looks better than real."""

from __future__ import annotations

import math

import pytest
import torch
from flowmap_digits import TINY_WAN, evaluation
from flowmap_digits.videos import held_out_prompts
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap.evaluation import Samples, endpoint_error, energy_distance_of_latents, variety
from flowmap.evaluation.distances import by_prompt, energy_distance, spread_of

PROMPTS = tuple(prompt.text for prompt in held_out_prompts())


def folded(mean: float, std: float) -> float:
    """E|N(mean, std²)|."""
    z = mean / std
    return std * math.sqrt(2 / math.pi) * math.exp(-z * z / 2) + mean * math.erf(z / math.sqrt(2))


@pytest.mark.parametrize("n", [2, 3, 8, 64])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.7)])
def test_the_energy_distance_of_gaussians_is_the_exact_one_at_every_number_of_samples(n, mean, std):
    """2 E|X − Y| − E|X − X'| − E|Y − Y'| of N(0, 1) and N(mean, std²), by the mean of a folded normal."""
    exact = 2 * folded(mean, math.hypot(1, std)) - folded(0, math.sqrt(2)) - folded(0, std * math.sqrt(2))
    rng = torch.Generator().manual_seed(n)
    trials = 20_000 // n
    found = torch.tensor(
        [
            energy_distance(
                torch.randn(n, 1, generator=rng, dtype=torch.float64),
                mean + std * torch.randn(n, 1, generator=rng, dtype=torch.float64),
            )
            for _ in range(trials)
        ]
    )
    error = float(found.std()) / math.sqrt(trials)
    assert abs(float(found.mean()) - exact) < 4 * error
    assert 4 * error < 0.07
    biased = 2 * folded(0, math.sqrt(2)) / n  # with pairs of a sample and itself: what is caught here
    assert biased > 4 * error or n == 64


def test_it_is_in_root_mean_squares_of_an_element():
    x, y = torch.zeros(3, 400), torch.full((3, 400), 2.0)
    assert energy_distance(x, y) == pytest.approx(4.0)
    assert spread_of(x) == 0.0
    assert math.isnan(spread_of(x[:1])) and math.isnan(energy_distance(x[:1], y))


def test_prompts_of_one_sample_are_left_out():
    assert {p: rows.tolist() for p, rows in by_prompt(["a", "b", "a", "c", "a"]).items()} == {"a": [0, 2, 4]}


@pytest.fixture(scope="module")
def latents() -> tuple[Tensor, Tensor]:
    """Latents of real clips, [256, ...], and of others to compare with; sample i has prompt i mod 16."""
    codec = Wan21(TINY_WAN, lora=None, text_tokens=12).codec(device=torch.device("cpu"), dtype=torch.float32)
    texts = PROMPTS * 16
    return codec.encode(evaluation.real_clips(texts, 0)), codec.encode(evaluation.real_clips(texts, 1))


def less_varied(x: Tensor, pool: Tensor) -> Tensor:
    """Each sample 30 % nearer to the mean of its prompt."""
    mean = torch.stack([pool[k :: len(PROMPTS)].mean(0) for k in range(len(PROMPTS))])
    mean = mean.repeat(len(x) // len(PROMPTS), *[1] * (x.ndim - 1))
    return mean + 0.7 * (x - mean)


def copied(x: Tensor, pool: Tensor) -> Tensor:
    """Of each prompt, 30 % of the samples are copies of another one."""
    made, each = x.clone(), len(x) // len(PROMPTS)
    made[: math.ceil(0.3 * each) * len(PROMPTS)] = x[-len(PROMPTS) :].repeat(math.ceil(0.3 * each), *[1] * (x.ndim - 1))
    return made


@pytest.mark.parametrize("n", [32, 64, 128, 256])
@pytest.mark.parametrize("worse", [less_varied, copied])
def test_a_generator_with_less_variety_loses_to_real_clips(latents, n, worse):
    """In every draw of n samples, not only on average; the Fréchet distance prefers it at 32 and 64."""
    x, y = latents
    beside, texts = Samples(y, y, PROMPTS * 16, None), PROMPTS * (n // len(PROMPTS))
    for part in x.split(n):
        flat = worse(part, x)
        real, less = (Samples(a, a, texts, None, beside) for a in (part, flat))
        assert energy_distance_of_latents.measure(less) > energy_distance_of_latents.measure(real)
        assert variety.measure(less) < variety.measure(real) - 0.1


def test_without_real_videos_there_is_no_number(latents):
    x, _ = latents
    alone = Samples(x, x, PROMPTS * 16, x)
    assert math.isnan(energy_distance_of_latents.measure(alone)) and math.isnan(variety.measure(alone))
    assert endpoint_error.measure(alone) == 0.0
