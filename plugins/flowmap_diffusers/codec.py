"""Prompts and videos through a pipeline's own text encoders and VAE, whatever pipeline it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from flowmap._types import Cond, Latent

from .build import folded, positions_of
from .folder import downloaded
from .loading import no_bar
from .row import Positions, Row

if TYPE_CHECKING:
    from .settings import Settings


def components(folder: Path, dtype: torch.dtype, *, texts: bool = True) -> dict[str, Any]:
    """A pipeline's settings, and its parts but the transformer, one by one: a student's index names its own code.

    Without `texts` None for what is of the library transformers: encoders and tokenizers, of images too.
    """
    index = json.loads((folder / "model_index.json").read_text())
    named = {name: entry for name, entry in index.items() if not name.startswith("_") and name != "transformer"}
    found = {name: entry for name, entry in named.items() if not isinstance(entry, list)}
    for name, entry in named.items():
        if name in found or not entry[0]:
            continue
        if not texts and entry[0] == "transformers":
            found[name] = None
            continue
        kind: Any = getattr(import_module(entry[0]), entry[1])
        weights = {"dtype": dtype, "use_safetensors": True} if issubclass(kind, torch.nn.Module) else {}
        with no_bar():
            found[name] = kind.from_pretrained(folder, subfolder=name, **weights)
    return found


@frozen
class DiffusersCodec:
    """Holds text encoders and VAE, no transformer.

    batch: of images; videos go through their VAE one at a time, since that of HunyuanVideo-1.5 raises for two.
    """

    pipeline: Any
    row: Row
    positions: Positions
    guidance: float
    batch: int = 16

    @classmethod
    def of(cls, spec: Settings, *, device: torch.device, dtype: torch.dtype, texts: bool = True) -> DiffusersCodec:
        """texts: whether it encodes prompts and images, too."""
        if spec.path is None:
            raise ValueError("Diffusers.path = None: random weights have no text encoder and no VAE")
        folder = Path(spec.path)
        if not folder.is_dir():
            folder = downloaded(spec.path, ignore_patterns=["transformer/*"])
        parts = components(folder, dtype, texts=texts)
        _, kind = spec.row.classes()
        known = signature(kind.__init__).parameters
        pipeline = kind(transformer=None, **{name: part for name, part in parts.items() if name in known})
        return cls(pipeline.to(device), spec.row, positions_of(spec), spec.guidance)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        """Each as the pipeline encodes it for a call of its own, which has defaults that `encode_prompt` alone has not.

        One at a time: that of Mochi makes zeros of all of them where the last is empty.
        """
        made = [self._texts(one) for one in prompts]
        cond = {name: torch.cat([one[name] for one in made]) for name in made[0]}
        cond = {name: value.long() if name in self.row.masks else value.float() for name, value in cond.items()}
        if "guidance" in self.row.example:
            cond["guidance"] = torch.full((len(prompts),), self.guidance, device=cond["text"].device)
        return cond

    def _texts(self, prompt: str) -> Cond:
        known, called = (signature(f).parameters for f in (self.pipeline.encode_prompt, self.pipeline.__call__))
        asked = {name: called[name].default for name in known if name in called}
        asked |= {"prompt": [prompt], "batch_size": 1, "do_classifier_free_guidance": False}
        asked |= {"device": self.pipeline.device}
        if self.row.tokens is not None:
            asked["max_sequence_length"] = self.row.tokens
        asked |= {} if prompt else self.row.empty
        made = self.pipeline.encode_prompt(**{name: value for name, value in asked.items() if name in known})
        made = made if isinstance(made, tuple) else (made,)
        return self._padded({name: made[at] for name, at in self.row.text.items()})

    def _padded(self, cond: dict[str, Any]) -> Cond:
        """A text of as many tokens whatever the prompt, and a mask that says which are its own.

        Pipelines leave the mask out where all are, or give a list of texts, each of its own length.
        """
        if self.row.tokens is None:
            return cond
        text, mask = cond["text"], cond.get("mask")
        if mask is None:
            mask = [torch.ones(len(one), dtype=torch.int64, device=one.device) for one in text]
        long = (torch.stack([self._long(one) for one in value]) for value in (text, mask))
        return {**cond, **dict(zip(("text", "mask"), long, strict=True))}

    def _long(self, one: Tensor) -> Tensor:
        padded = one.new_zeros(self.row.tokens or 0, *one.shape[1:])
        padded[: len(one)] = one
        return padded

    @torch.no_grad()
    def encode_images(self, images: Tensor, frames: int) -> Cond:
        """What the row makes of them, as its pipeline does."""
        return {name: make(self, images, frames).float() for name, make in self.row.images.items()}

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Latent:
        """[B, frames, 3, H, W] in [0, 1] -> the posterior's mode, normalised: [B, F, C, h, w]."""
        return torch.cat([self._encode(part) for part in videos.split(self.batch if self.still else 1)])

    def decode(self, x: Latent) -> Tensor:
        """With a graph where x has one."""
        self.pipeline.vae.requires_grad_(False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            return torch.cat([self._decode(part) for part in x.split(self.batch if self.still else 1)])

    def decode_chunks(self, chunks: Iterable[Latent]) -> Iterator[Tensor]:
        """All at once: these networks generate all frames in one chunk."""
        yield self.decode(torch.cat(list(chunks), 1))

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        temporal, spatial = self.positions.temporal, self.positions.spatial
        side, many = spatial * self.row.side, frames > 1 if self.row.image else (frames - 1) % temporal
        if min(frames, height, width) < 1 or many or height % side or width % side:
            allowed = "1" if self.row.image else f"1 more than a multiple of {temporal}"
            raise ValueError(
                f"{frames}x{height}x{width} is no size of this model: frames must be {allowed}, height and width "
                f"multiples of {side}"
            )
        config = self.pipeline.vae.config
        channels = int(config.get("latent_channels") or config["z_dim"]) * folded(self.pipeline.vae) ** 2
        return (frames - 1) // temporal + 1, channels, height // spatial, width // spatial

    def _encode(self, videos: Tensor) -> Latent:
        vae, still = self.pipeline.vae, self.still
        x = (2 * videos - 1).to(vae.device, vae.dtype)
        x = vae.encode(x[:, 0] if still else x.transpose(1, 2)).latent_dist.mode()
        x = pixel_unshuffle((x[:, None] if still else x.transpose(1, 2)).float(), folded(vae))
        mean, std = statistics(vae, x)
        return (x - mean) / std

    def _decode(self, x: Latent) -> Tensor:
        vae, still = self.pipeline.vae, self.still
        mean, std = statistics(vae, x.to(vae.device))
        raw = pixel_shuffle(x.to(vae.device) * std + mean, folded(vae)).to(vae.dtype)
        y = vae.decode(raw[:, 0] if still else raw.transpose(1, 2), return_dict=False)[0]
        return ((y[:, None] if still else y.transpose(1, 2)).float() / 2 + 0.5).clamp(0, 1)

    @property
    def still(self) -> bool:
        """Whether the VAE is one of images; some pipelines of images have one of videos."""
        return not any(isinstance(layer, torch.nn.Conv3d) for layer in self.pipeline.vae.modules())


def statistics(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of raw latents. VAEs say them as a mean and a deviation a channel, in their config or as
    buffers, with a factor or without; as a shift and a factor; as a factor; or as those of a batch norm."""
    config: Mapping[str, Any] = vae.config
    if "batch_norm_eps" in config:
        mean, var = (value.to(x).reshape(-1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (var + config["batch_norm_eps"]).sqrt()
    factor = config.get("scaling_factor") or 1.0
    said = [
        vars(vae).get("_buffers", {}).get(f"latents_{name}", config.get(f"latents_{name}")) for name in ("mean", "std")
    ]
    if said[0] is not None and said[1] is not None:
        mean, std = (torch.as_tensor(value).to(x).reshape(-1, 1, 1) for value in said)
        return mean, std / factor
    return torch.as_tensor(config.get("shift_factor") or 0.0).to(x), torch.as_tensor(1 / factor).to(x)
