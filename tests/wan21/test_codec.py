"""The codec on the shipped pipeline: a video decoded as it arrives is the video decoded at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowmap_digits import TINY_WAN
from flowmap_digits.videos import clips
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import Rng

CODEC: Any = Wan21(TINY_WAN, text_tokens=12).codec(device=torch.device("cpu"), dtype=torch.float32)
FRAMES = 5


def latents(seed: int = 0, batch: int = 1) -> Tensor:
    return Rng.seeded(seed).noise_like(torch.zeros(batch, FRAMES, 4, 8, 8))


def test_the_comparison_is_with_a_vae_that_neither_tiles_nor_slices() -> None:
    assert not CODEC.pipeline.vae.use_tiling and not CODEC.pipeline.vae.use_slicing


def test_a_decoder_decodes_alike_and_holds_no_text_encoder() -> None:
    decoder: Any = Wan21(TINY_WAN).decoder(device=torch.device("cpu"), dtype=torch.float32)
    assert decoder.pipeline.text_encoder is None and CODEC.pipeline.text_encoder is not None
    torch.testing.assert_close(decoder.decode(latents()), CODEC.decode(latents()), rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sizes", [(5,), (1, 4), (1, 1, 1, 1, 1), (3, 2), (1, 3, 1)])
def test_a_video_decoded_in_chunks_is_the_video(sizes: tuple[int, ...], batch: int) -> None:
    x = latents(batch=batch)
    made = [*CODEC.decode_chunks(iter(x.split(sizes, dim=1)))]
    assert [part.shape[1] for part in made] == [2 * sizes[0] - 1, *(2 * n for n in sizes[1:])]
    torch.testing.assert_close(torch.cat(made, 1), CODEC.decode(x), rtol=0, atol=1e-6)


def test_streams_share_a_vae_and_leave_it_as_it_is() -> None:
    """Two in turns, with other videos encoded and decoded between."""
    one, two = latents(1), latents(2)
    whole = CODEC.decode(one), CODEC.decode(two)
    streams = [CODEC.decode_chunks(iter(x.split((1, 2, 2), dim=1))) for x in (one, two)]
    made: list[list[Tensor]] = [[], []]
    for _ in range(3):
        for parts, stream in zip(made, streams, strict=True):
            parts.append(next(stream))
            torch.testing.assert_close(CODEC.decode(one), whole[0], rtol=0, atol=0)
            CODEC.encode(whole[1])
    for parts, video in zip(made, whole, strict=True):
        torch.testing.assert_close(torch.cat(parts, 1), video, rtol=0, atol=1e-6)


def test_a_chunk_is_decoded_before_the_next_is_asked_for() -> None:
    asked = []

    def arriving() -> Any:
        for k, chunk in enumerate(latents().split((1, 2, 2), dim=1)):
            asked.append(k)
            yield chunk

    made = CODEC.decode_chunks(arriving())
    for k in range(3):
        frames = next(made)
        assert asked == [*range(k + 1)] and not frames.requires_grad and torch.is_grad_enabled()


@pytest.mark.parametrize("frames", [1, 3, 5, 7, 9])
def test_the_beginning_of_a_clip_has_the_beginning_of_its_latents(frames: int) -> None:
    """Of every length that there is: diffusers' encoder alone would drop the last latent of 3 and of 7 frames."""
    videos, _ = clips(2, 0)
    x = CODEC.encode(videos[:, :frames])
    assert x.shape[1:] == CODEC.latent_shape(frames, 32, 32)
    torch.testing.assert_close(x, CODEC.encode(videos)[:, : x.shape[1]], rtol=0, atol=1e-5)
