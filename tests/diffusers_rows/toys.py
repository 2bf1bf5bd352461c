"""Text encoders, VAEs and schedules of pipelines of videos, at toy size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flowmap_digits

TINY = Path(flowmap_digits.__file__).parent / "assets" / "tiny_wan"


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY, subfolder="tokenizer")


def t5(words: int, cls: str = "T5EncoderModel") -> Any:
    import transformers

    config = getattr(transformers, cls.replace("EncoderModel", "Config"))
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return getattr(transformers, cls)(config(vocab_size=words, **sizes)).eval()


def wan_vae() -> Any:
    """16 frames and 8 × 8 pixels at 4 frames and 1 latent; the statistics are no trivial ones."""
    from diffusers import AutoencoderKLWan

    said = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    return AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **said).eval()


def skyreels_v2() -> Mapping[str, Any]:
    from diffusers import UniPCMultistepScheduler

    words = tokenizer()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 8.0}
    return {
        "tokenizer": words,
        "text_encoder": t5(len(words), "UMT5EncoderModel"),
        "vae": wan_vae(),
        "scheduler": UniPCMultistepScheduler(num_train_timesteps=1000, **flow),
    }


def mochi() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler

    words = tokenizer()
    sizes = {"layers_per_block": (1, 1, 1, 1, 1), "add_attention_block": (False,) * 5, "scaling_factor": 2.0}
    channels = {"encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4}
    return {
        "tokenizer": words,
        "text_encoder": t5(len(words)),
        "vae": AutoencoderKLMochi(**sizes, **channels).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    }


def sana_video() -> Mapping[str, Any]:
    from transformers import Gemma2Config, Gemma2Model

    words = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 8}
    return {
        "tokenizer": words,
        "text_encoder": Gemma2Model(Gemma2Config(vocab_size=len(words), **sizes, **heads)).eval(),
        "vae": wan_vae(),
    }
