"""The measurements: perfect on real clips, steady under noise and blur, exact where a closed form exists."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as nnf
from flowmap_digits import CLASSIFIER, TINY_WAN, classifier, measure, videos
from flowmap_digits.classifier import Moments
from flowmap_digits.videos import HEAVY, Prompt
from torch import Tensor

Clips = tuple[Tensor, list[Prompt]]


@pytest.fixture(scope="module")
def real() -> Clips:
    return videos.clips(400, 11, "all", images="held_out")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and wait long for them where other processes hold the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def gaussian(count: int, mean: list[float], scale: list[float], seed: int) -> Tensor:
    """Samples whose mean and (diagonal) covariance are exactly the ones asked for."""
    raw = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    raw = raw - raw.mean(dim=0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T))).T
    return white * torch.tensor(scale) + torch.tensor(mean)


def test_motion_is_the_velocity_of_plain_clips(real: Clips) -> None:
    batch, prompts = real
    plain = [index for index, prompt in enumerate(prompts) if not prompt.bouncing]
    velocity = torch.tensor([prompts[index].velocity for index in plain])
    moves = measure.motion(batch[plain])
    torch.testing.assert_close(moves, velocity[:, None].expand_as(moves).float(), atol=0.02, rtol=0.0)


def test_real_clips_score_perfectly(real: Clips) -> None:
    assert measure.direction_accuracy(*real) == 1
    assert measure.bounce_accuracy(*real) == 1
    assert measure.speed_error(*real) < 1e-3


def test_noise_and_blur_hardly_matter(real: Clips) -> None:
    batch, prompts = real
    soft = nnf.avg_pool3d(batch, (1, 3, 3), stride=1, padding=(0, 1, 1))
    spoilt = (0.8 * soft + 0.08 * noise(batch, 0)).clamp(0, 1)
    assert measure.direction_accuracy(spoilt, prompts) > 0.99
    assert measure.bounce_accuracy(spoilt, prompts) > 0.99
    assert measure.speed_error(spoilt, prompts) < 0.15


def test_wrong_motion_is_noticed(real: Clips) -> None:
    batch, prompts = real
    mirrored = batch.flip(3, 4)
    assert measure.direction_accuracy(mirrored, prompts) == 0
    still = batch[:, :1].expand_as(batch)
    assert measure.direction_accuracy(still, prompts) == 0
    assert measure.speed_error(still, prompts) == pytest.approx(sum(abs(sum(p.velocity)) for p in prompts) / 400)


def test_an_empty_video_is_no_error() -> None:
    empty, prompts = torch.zeros(2, 9, 3, 32, 32), list(videos.all_prompts()[:2])
    assert measure.motion(empty).eq(0).all()
    assert measure.direction_accuracy(empty, prompts) == 0


def test_frechet_of_equal_sets_is_zero() -> None:
    sample = gaussian(200, [0.0, 1.0, -2.0], [1.0, 0.5, 2.0], seed=0)
    assert measure.frechet(sample, sample) == pytest.approx(0, abs=1e-9)


def test_frechet_of_two_gaussians_is_the_closed_form() -> None:
    a = gaussian(300, [0.0, 1.0], [1.0, 2.0], seed=1)
    b = gaussian(500, [1.0, -1.0], [3.0, 0.5], seed=2)
    assert measure.frechet(a, b) == pytest.approx(1 + 4 + (3 - 1) ** 2 + (2 - 0.5) ** 2)
    assert measure.frechet(b, a) == pytest.approx(measure.frechet(a, b))


def test_frechet_of_covariances_that_do_not_commute() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    a = Moments(zero, torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    b = Moments(zero, torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
    product = a.cov @ b.cov  # 2×2: the trace of a root is √(tr + 2 √det)
    root_trace = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(product.det())))
    assert measure.gaussian_frechet(a, b) == pytest.approx(4 + 5 - 2 * root_trace)


def test_the_classifier_reads_unseen_handwriting(real: Clips) -> None:
    rates = measure.label_accuracy(*real)
    assert rates["digit"] >= 0.97
    assert min(rates["direction"], rates["speed"], rates["bouncing"]) >= 0.98


def test_the_classifier_is_small() -> None:
    network, _ = classifier.load()
    assert sum(weight.numel() for weight in network.parameters()) <= 60_000
    assert CLASSIFIER.stat().st_size < 300_000


def test_the_classifier_names_a_wrong_number_of_frames() -> None:
    with pytest.raises(ValueError, match=r"\(1, 5, 3, 32, 32\)"):
        measure.features(torch.zeros(1, 5, 3, 32, 32))


def test_distance_to_real_clips_grows_with_the_damage(real: Clips) -> None:
    batch, _ = real
    damaged = [(batch + level * noise(batch, 3)).clamp(0, 1) for level in (0.0, 0.2, 0.5)]
    distances = [
        measure.gaussian_frechet(measure.moments(measure.features(x)), measure.real_moments()) for x in damaged
    ]
    assert distances == sorted(distances)
    assert distances[2] > 5 * distances[0]


def test_the_features_see_another_style_and_real_clips_of_it_score_perfectly_in_it() -> None:
    """Measured: 0.3 from plain to plain, 7.6 from heavy to plain."""
    plain, _ = videos.clips(500, 8, "held_out", images="held_out")
    again, _ = videos.clips(500, 7, "held_out", images="held_out")
    heavy, prompts = videos.clips(500, 7, "held_out", images="held_out", style=HEAVY)
    reference = measure.features(plain)
    own = measure.frechet(measure.features(again), reference)
    assert measure.frechet(measure.features(heavy), reference) > 10 * own
    assert measure.speed_error(heavy, prompts, HEAVY) < 1e-3
    assert measure.speed_error(heavy, prompts) == pytest.approx(
        sum(abs(sum(p.velocity)) for p in prompts) / 1000, abs=1e-3
    )
    assert measure.direction_accuracy(heavy, prompts) == measure.bounce_accuracy(heavy, prompts) == 1


def test_the_vae_keeps_heavy_clips_too() -> None:
    """Measured: 27 dB, and 31 for plain ones, on which it was trained."""
    assert psnr(videos.clips(32, 11, "all", images="held_out", style=HEAVY)[0]) > 25


def psnr(clips: Tensor) -> float:
    """Of decode(encode(x)), in dB."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(TINY_WAN / "vae")
    x = clips.transpose(1, 2) * 2 - 1
    with torch.no_grad():
        error = (vae.decode(vae.encode(x).latent_dist.mode()).sample - x).square().mean() / 4
    return float(-10 * error.log10())


def test_the_vae_keeps_clips_and_its_latents_are_normalised(real: Clips) -> None:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(TINY_WAN / "vae")
    x = real[0][:32].transpose(1, 2) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.mode()
        error = (vae.decode(latents).sample - x).square().mean() / 4
    mean, std = (
        torch.tensor(value).view(1, -1, 1, 1, 1) for value in (vae.config.latents_mean, vae.config.latents_std)
    )
    assert latents.shape == (32, 4, 5, 8, 8)
    assert -10 * error.log10() > 28
    assert ((latents - mean) / std).mean().abs() < 0.1
    assert ((latents - mean) / std).std() == pytest.approx(1, abs=0.1)


def test_the_text_parts_tell_prompts_apart() -> None:
    from transformers import AutoTokenizer, UMT5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(TINY_WAN / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(TINY_WAN / "text_encoder")
    texts = tokenizer([p.text for p in videos.all_prompts()], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**texts).last_hidden_state * texts.attention_mask[..., None]
    distances = torch.pdist(states.flatten(1))
    assert tokenizer.unk_token_id not in texts.input_ids
    assert texts.input_ids.shape[1] == 8
    assert distances.min() > 0.3 * distances.mean()
    assert states[texts.attention_mask.bool()].std() == pytest.approx(1, abs=0.2)
