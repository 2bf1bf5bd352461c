"""Moving digits as batches: clips through the backbone's own VAE and text encoder, once."""

from __future__ import annotations

from pathlib import Path

import torch
from attrs import field, frozen

from flowmap import FlowMapSpec, TensorData, validators
from flowmap.model import conditions_of_images

from .videos import CANVAS, FRAMES, PLAIN, Style, clips


@frozen
class MovingDigits:
    """`count` clips of the training prompts, drawn in `style`; "" is the null prompt.

    Networks that begin with an image are told of each clip's first frame.
    """

    count: int = field(default=4096, validator=validators.ge(1))
    seed: int = 0
    style: Style = field(default=PLAIN, validator=validators.instance_of(Style))

    def sizes(self, backbone: FlowMapSpec) -> dict[str, tuple[int, ...]]:
        """Of a sample's latents and text, before any clip is drawn."""
        codec = backbone.codec(device=torch.device("cpu"), dtype=torch.float32)
        first = conditions_of_images(codec, torch.zeros(1, 3, CANVAS, CANVAS), FRAMES)
        cond = {name: tuple(value.shape[1:]) for name, value in {**codec.encode_prompts([""]), **first}.items()}
        return {"x": codec.latent_shape(FRAMES, CANVAS, CANVAS), **cond}

    def load(self, backbone: FlowMapSpec, cache: Path | None, *, device: torch.device) -> TensorData:
        codec = backbone.codec(device=device, dtype=torch.float32)
        videos, prompts = clips(self.count, self.seed, style=self.style)
        texts = sorted({prompt.text for prompt in prompts})
        table = {name: value.cpu() for name, value in codec.encode_prompts(texts).items()}
        rows = [texts.index(prompt.text) for prompt in prompts]
        null = {name: value.cpu() for name, value in codec.encode_prompts([""]).items()}
        own = {name: value.cpu() for name, value in conditions_of_images(codec, videos[:, 0], FRAMES).items()}
        return TensorData(codec.encode(videos).cpu(), {**{name: v[rows] for name, v in table.items()}, **own}, null)
