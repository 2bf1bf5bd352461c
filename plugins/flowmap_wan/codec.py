"""Prompts and videos to conditions and latents, through the pipeline's own text encoder and VAE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from flowmap_diffusers.loading import no_bar
from torch import Tensor

from flowmap._types import Cond, Latent
from flowmap.model import ConditionError, origin
from flowmap.validators import counted

if TYPE_CHECKING:
    from .settings import WanSettings


def components(path: str, dtype: torch.dtype, *, texts: bool = True) -> dict[str, Any]:
    """Everything of a pipeline but transformer and scheduler; without `texts` None for what is of text.

    One by one: `WanPipeline.from_pretrained(path, transformer=None)` loads the transformer all the same.
    """
    from diffusers import AutoencoderKLWan
    from transformers import AutoTokenizer, UMT5EncoderModel

    given = {"dtype": dtype, "use_safetensors": True}  # the libraries would fall back on pickles
    with no_bar():
        vae: Any = AutoencoderKLWan.from_pretrained(path, subfolder="vae", **given).eval()
        vae.register_to_config(_name_or_path=origin(path))  # is saved with it
        if not texts:
            return {"tokenizer": None, "text_encoder": None, "vae": vae}
        return {
            "tokenizer": AutoTokenizer.from_pretrained(path, subfolder="tokenizer"),
            "text_encoder": UMT5EncoderModel.from_pretrained(path, subfolder="text_encoder", **given).eval(),
            "vae": vae,
        }


ENCODED = 4
"""`AutoencoderKLWan` encodes the first frame, and then so many at a time, whatever its factor; it drops the rest."""


@frozen
class WanCodec:
    """Holds text encoder and VAE, no transformer: training never holds it."""

    pipeline: Any
    text_length: int
    text_tokens: int
    batch: int = 64

    @classmethod
    def of(cls, spec: WanSettings, *, device: torch.device, dtype: torch.dtype, texts: bool = True) -> WanCodec:
        """texts: whether it encodes prompts, too."""
        from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

        if spec.path is None:
            raise ValueError(f"{type(spec).__name__}.path = None: random weights have no text encoder and no VAE")
        parts = components(spec.path, dtype, texts=texts)
        pipeline = WanPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=None, **parts)
        return cls(pipeline.to(device), spec.text_length, spec.text_tokens)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        """{"text": [B, text_tokens, d]}: beyond a prompt's end, zeros; the last position must be one of them."""
        self.require_short(prompts)
        text, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=self.text_length
        )
        return {"text": text[:, : self.text_tokens].float()}

    def require_short(self, prompts: Sequence[str]) -> None:
        """An error for prompts with `text_tokens` or more tokens, if more are read: one is left for padding."""
        if self.text_tokens == self.text_length:
            return
        counts = [min(count, self.text_length) for count in self._counts(prompts)]
        if not (long := [k for k, count in enumerate(counts) if count >= self.text_tokens]):
            return
        worst = max(long, key=counts.__getitem__)
        which, least = prompts[worst][:60], min(counts[worst] + 1, self.text_length)
        are = f"{len(long)} of {counted(len(prompts), 'prompt')} {'is' if len(long) == 1 else 'are'}"
        room = f"text_tokens = {self.text_tokens}, which holds {self.text_tokens - 1} tokens and one of padding"
        raise ConditionError(
            f"{are} too long for {room}; the longest, {which!r}, has {counts[worst]}: give the backbone "
            f"text_tokens={least} or more, up to {self.text_length}"
        )

    def tokens_cut(self, prompts: Sequence[str]) -> Sequence[int]:
        return [max(0, count - self.text_length) for count in self._counts(prompts)]

    def _counts(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, as the pipeline cleans it, and were nothing cut."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        cleaned = [prompt_clean(prompt) for prompt in prompts]
        found = self.pipeline.tokenizer(cleaned, truncation=False, verbose=False).input_ids if cleaned else []
        return [len(tokens) for tokens in found]

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Latent:
        """[B, frames, 3, H, W] in [0, 1] -> the posterior's mode, normalised per channel: [B, F, C, h, w]."""
        vae, (mean, std) = self.pipeline.vae, self._statistics()
        frames = (videos.shape[1] - 1) // self.pipeline.vae_scale_factor_temporal + 1
        parts = [
            vae.encode(_filled(2 * part - 1).transpose(1, 2).to(vae.device, vae.dtype))
            .latent_dist.mode()
            .transpose(1, 2)
            for part in videos.split(self.batch)
        ]
        return (torch.cat(parts)[:, :frames].float() - mean) / std

    def decode(self, x: Latent) -> Tensor:
        """With a graph where x has one."""
        vae = self.pipeline.vae.requires_grad_(False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            parts = [vae.decode(part, return_dict=False)[0] for part in self._raw(x).split(self.batch)]
            return _video(torch.cat(parts))

    @torch.no_grad()
    def decode_chunks(self, chunks: Iterable[Latent]) -> Iterator[Tensor]:
        """As diffusers' `AutoencoderKLWan` decodes, a latent frame at a time, but from one chunk to the next.

        What the decoder keeps of earlier frames is kept here and not in the VAE, which several streams can share. Whole
        frames: no tiles.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        vae, first = self.pipeline.vae, True
        kept: list[Any] = [None for _ in vae.decoder.modules()]  # a place for each convolution, and more
        for x in chunks:
            made = []
            for frame in vae.post_quant_conv(self._raw(x)).split(1, dim=2):
                made.append(vae.decoder(frame, feat_cache=kept, feat_idx=[0], first_chunk=first))
                first = False
            frames = torch.cat(made, 2)
            yield _video(frames if vae.config.patch_size is None else unpatchify(frames, vae.config.patch_size))

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        vae = self.pipeline.vae
        temporal, spatial = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        side = 2 * spatial  # the transformer takes 2 × 2 latents for one token
        if min(frames, height, width) < 1 or (frames - 1) % temporal or height % side or width % side:
            raise ValueError(
                f"{frames}x{height}x{width} is no size of this model: frames must be 1 more than a multiple of "
                f"{temporal}, height and width multiples of {side}"
            )
        return (frames - 1) // temporal + 1, vae.config.z_dim, height // spatial, width // spatial

    def _raw(self, x: Latent) -> Tensor:
        """As the VAE has them: [B, C, F, h, w]."""
        vae, (mean, std) = self.pipeline.vae, self._statistics()
        return (x.to(vae.device) * std + mean).to(vae.dtype).transpose(1, 2)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        mean, std = (torch.tensor(vae.config[f"latents_{name}"], device=vae.device) for name in ("mean", "std"))
        return mean[:, None, None], std[:, None, None]


def _filled(videos: Tensor) -> Tensor:
    """With the last frame again, up to a number that is encoded whole: the encoder looks back only."""
    again = videos[:, -1:].expand(-1, (1 - videos.shape[1]) % ENCODED, -1, -1, -1)
    return torch.cat([videos, again], 1)


def _video(frames: Tensor) -> Tensor:
    """[B, 3, n, H, W] in [-1, 1] -> [B, n, 3, H, W] in [0, 1]."""
    return (frames.transpose(1, 2).float() / 2 + 0.5).clamp(0, 1)
