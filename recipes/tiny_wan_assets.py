"""Make the small frozen parts of the moving-digits pipeline: VAE, text encoder, tokenizer, scheduler and classifier.

    python recipes/tiny_wan_assets.py --out plugins/flowmap_digits/assets [--only vae text pipeline classifier]

``DIR/tiny_wan`` becomes a diffusers ``WanPipeline`` directory that lacks only its transformer, and
``DIR/classifier.safetensors`` holds the classifier of ``flowmap_digits.measure`` with the statistics of real clips.
Everything follows from the seeds below; the whole takes about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from flowmap_digits import classifier as reader
from flowmap_digits import measure
from flowmap_digits.videos import all_prompts, clips
from torch import Tensor, nn

SEED = 20250601
VAE_STEPS, VAE_BATCH, VAE_LR, VAE_KL = 4000, 8, 5e-3, 1e-4
VAE_CONFIG: dict[str, Any] = {
    "base_dim": 8,
    "decoder_base_dim": 16,
    "z_dim": 4,
    "dim_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 4,
}
"""Nine 32×32 frames become five 8×8 latents of 4 channels; pixels are folded 2×2 first, as Wan2.2's VAE does."""


READER_STEPS, READER_BATCH, READER_LR, REAL_CLIPS = 1300, 64, 4e-3, 4096


def to_vae(videos: Tensor) -> Tensor:
    """[N, F, 3, H, W] in [0, 1] to the VAE's [N, 3, F, H, W] in [−1, 1]."""
    return videos.transpose(1, 2) * 2 - 1


def seeded(seed: int, make: Callable[[], nn.Module]) -> Any:
    """A module whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then a half cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def optimise(model: nn.Module, losses: Iterable[Tensor], steps: int, lr: float, name: str) -> None:
    """Adam over a stream of losses, a line of progress every hundred steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    start = time.perf_counter()
    for step, loss in enumerate(losses):
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 99:
            print(f"{name} {step + 1}/{steps}  loss {loss:.4f}  {time.perf_counter() - start:.0f} s", flush=True)


def start_sharp(vae: Any) -> None:
    """Begin with a posterior deviation of about 0.08, so that the noise does not drown what is yet to be learnt."""
    with torch.no_grad():
        vae.quant_conv.bias[vae.config.z_dim :] = -5.0


def decode_unclamped(vae: Any, latents: Tensor) -> Tensor:
    """``vae.decode`` without its final clamp, behind which a pixel that is too dark would get no gradient."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    frames = []
    for index, frame in enumerate(vae.post_quant_conv(latents).split(1, dim=2)):
        vae._conv_idx = [0]
        cache = {"feat_cache": vae._feat_map, "feat_idx": vae._conv_idx}
        frames.append(vae.decoder(frame, **cache, first_chunk=index == 0))
    return unpatchify(torch.cat(frames, dim=2), patch_size=vae.config.patch_size)


def vae_losses(vae: Any, generator: torch.Generator, steps: int) -> Iterator[Tensor]:
    """Squared and absolute error of the reconstruction, the error of its edges, and a small KL to N(0, 1)."""
    for step in range(steps):
        x = to_vae(clips(VAE_BATCH, SEED + step)[0])
        posterior = vae.encode(x).latent_dist
        y = decode_unclamped(vae, posterior.sample(generator))
        edges = sum(nnf.l1_loss(y.diff(dim=axis), x.diff(dim=axis)) for axis in (2, 3, 4))
        kl = posterior.kl().sum() / posterior.mean.numel()
        yield nnf.mse_loss(y, x) + 0.3 * nnf.l1_loss(y, x) + 0.1 * edges + VAE_KL * kl


@torch.no_grad()
def latent_moments(vae: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation of each latent channel over encoded clips (the posterior's mode)."""
    videos = clips(1024, SEED - 1, "train")[0]
    latents = torch.cat([vae.encode(to_vae(part)).latent_dist.mode() for part in videos.split(64)])
    channels = latents.transpose(0, 1).flatten(1).double()
    return channels.mean(1).tolist(), channels.std(1).tolist()


@torch.no_grad()
def reconstruction_psnr(vae: Any, videos: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of decode(encode(x)), for videos [N, F, 3, H, W] in [0, 1]."""
    errors = []
    for part in videos.split(64):
        x = to_vae(part)
        errors.append((vae.decode(vae.encode(x).latent_dist.mode()).sample - x).square().mean() / 4)
    return float(-10 * torch.stack(errors).mean().log10())


def make_vae(out: Path) -> None:
    """Train the VAE, measure its latents and store it."""
    from diffusers import AutoencoderKLWan

    config = {**VAE_CONFIG, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = seeded(SEED, lambda: AutoencoderKLWan(**config))
    start_sharp(vae)
    generator = torch.Generator().manual_seed(SEED)
    optimise(vae, vae_losses(vae, generator, VAE_STEPS), VAE_STEPS, VAE_LR, "vae")
    mean, std = latent_moments(vae.eval())
    vae.register_to_config(latents_mean=mean, latents_std=std)
    vae.save_pretrained(out / "tiny_wan" / "vae")
    psnr = reconstruction_psnr(vae, clips(256, 7, "held_out", images="held_out")[0])
    print(f"vae: {psnr:.2f} dB on held-out clips", flush=True)


def corrupt(videos: Tensor, generator: torch.Generator) -> Tensor:
    """The faults of a generator, lightly: blur, paleness and noise, each to a degree of its own for every clip."""
    grey = videos[:, :, 0]
    blur, pale, noise = torch.rand(3, len(grey), 1, 1, 1, generator=generator)
    soft = nnf.avg_pool2d(nnf.pad(grey, (1, 1, 1, 1)), 3, stride=1)
    grains = torch.randn(grey.shape, generator=generator)
    spoilt = torch.lerp(grey, soft, blur) * (1 - 0.3 * pale) + 0.1 * noise.square() * grains
    return spoilt.clamp(0, 1)[:, :, None].expand_as(videos)


def reader_losses(network: reader.Classifier, generator: torch.Generator, steps: int) -> Iterator[Tensor]:
    """Cross-entropies of the labels on lightly corrupted clips."""
    for step in range(steps):
        videos, prompts = clips(READER_BATCH, SEED + step, "all")
        yield reader.loss(network(corrupt(videos, generator)), reader.labels(prompts))


def make_classifier(out: Path) -> None:
    """Train the classifier, measure real clips in its features and store both."""
    network: reader.Classifier = seeded(SEED, reader.Classifier)
    generator = torch.Generator().manual_seed(SEED)
    optimise(network, reader_losses(network, generator, READER_STEPS), READER_STEPS, READER_LR, "classifier")
    network.eval()
    with torch.no_grad():
        videos = clips(REAL_CLIPS, SEED - 1, "all")[0]
        real = measure.moments(torch.cat([network.features(part) for part in videos.split(256)]))
        videos, prompts = clips(1000, 7, "all", images="held_out")
        answers, logits = reader.labels(prompts), network(videos)
    reader.save(network, real, out / "classifier.safetensors")
    rates = {name: float((logits[name].argmax(1) == answers[name]).float().mean()) for name in answers}
    print(f"classifier on held-out handwriting: {rates}", flush=True)


def make_tokenizer() -> Any:
    """A T5 tokenizer whose pieces are the words of the prompts; like UMT5's it ends every text with </s>."""
    from transformers import T5Tokenizer

    words = sorted({word for prompt in all_prompts() for word in prompt.text.replace(",", "").split()})
    pieces = ["<pad>", "</s>", "<unk>", "▁", ",", *(f"▁{word}" for word in words)]
    scores = [(piece, 0.0 if index < 3 else -1.0) for index, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=512)


def make_text(out: Path) -> None:
    """A tokenizer of the prompts' words and a frozen, randomly initialised UMT5 encoder."""
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(out / "tiny_wan" / "tokenizer")
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    config = UMT5Config(vocab_size=-(-len(tokenizer) // 16) * 16, **sizes)
    encoder = seeded(SEED, lambda: UMT5EncoderModel(config))
    encoder.eval().save_pretrained(out / "tiny_wan" / "text_encoder")
    longest = max(len(tokenizer(prompt.text).input_ids) for prompt in all_prompts())
    print(f"text: {len(tokenizer)} pieces, the longest prompt has {longest} tokens", flush=True)


def make_pipeline(out: Path, shift: float = 1.0) -> None:
    """The scheduler, and what names the parts. Euler, without a time shift: at this size it samples best so.

    That of flow maps, whose N steps are N equal ones. `FlowMatchEulerDiscreteScheduler` goes to the smallest time of
    its 1000 with one step fewer, shifting them twice where there is a shift.
    """
    from diffusers import FlowMapEulerDiscreteScheduler, __version__

    scheduler = FlowMapEulerDiscreteScheduler(shift=shift)
    scheduler.save_pretrained(out / "tiny_wan" / "scheduler")
    parts = {
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    index = {"_class_name": "WanPipeline", "_diffusers_version": __version__, **parts}
    (out / "tiny_wan" / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


PARTS: dict[str, Callable[[Path], None]] = {
    "text": make_text,
    "pipeline": make_pipeline,
    "classifier": make_classifier,
    "vae": make_vae,
}


def main() -> None:
    """Make the parts that were asked for, all of them unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the same sums in the same order everywhere
    for part in arguments.only:
        PARTS[part](arguments.out)


if __name__ == "__main__":
    main()
