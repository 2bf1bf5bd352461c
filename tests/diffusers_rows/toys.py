"""Text encoders, VAEs and schedules of pipelines of videos, at toy size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flowmap_digits

TINY = Path(flowmap_digits.__file__).parent / "assets" / "tiny_wan"


def tokenizer(longest: int = 512) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY, subfolder="tokenizer", model_max_length=longest)


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


def wan_i2v() -> Mapping[str, Any]:
    from flowmap_diffusers.stand_in import clip_vision

    words = tokenizer()
    text = {"tokenizer": words, "text_encoder": t5(len(words), "UMT5EncoderModel")}
    return {**text, "vae": wan_vae(), **clip_vision(8)}


def wan_ti2v() -> Mapping[str, Any]:
    from flowmap_diffusers import stand_in

    words = tokenizer()
    text = {"tokenizer": words, "text_encoder": t5(len(words), "UMT5EncoderModel")}
    return {**text, "vae": stand_in.wan_vae(16), "expand_timesteps": True}


def skyreels_v2_i2v() -> Mapping[str, Any]:
    from flowmap_diffusers.stand_in import clip_vision

    return {**skyreels_v2(), **clip_vision(8)}


def ltx_i2v() -> Mapping[str, Any]:
    from flowmap_diffusers import stand_in

    words = tokenizer()
    return {"tokenizer": words, "text_encoder": t5(len(words)), "vae": stand_in.ltx_vae()}


def cogvideox_i2v() -> Mapping[str, Any]:
    from flowmap_diffusers import stand_in

    return {**cogvideox(), "vae": stand_in.cogvideox_vae()}


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


SMALL: Mapping[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
LEVELS: Mapping[str, Any] = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}


def clip(words: Any, width: int = 8, projected: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ends = {"vocab_size": len(words), "bos_token_id": None, "eos_token_id": words.eos_token_id}
    config = CLIPTextConfig(**{**SMALL, "hidden_size": width, **ends, "projection_dim": projected or width})
    return CLIPTextModel(config) if projected is None else CLIPTextModelWithProjection(config)


def image_vae() -> Any:
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    said = {"latent_channels": 4, "scaling_factor": 0.36, "shift_factor": 0.12}
    return AutoencoderKL(**LEVELS, **blocks, **said, use_quant_conv=False, use_post_quant_conv=False)


def hunyuan_video() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLHunyuanVideo
    from transformers import LlamaConfig, LlamaModel

    words = tokenizer()
    llama = LlamaConfig(**{**SMALL, "hidden_size": 16, "num_hidden_layers": 3, "vocab_size": len(words)})
    return {
        "text_encoder": LlamaModel(llama),
        "tokenizer": words,
        "text_encoder_2": clip(words),
        "tokenizer_2": words,
        "vae": AutoencoderKLHunyuanVideo(latent_channels=4, **LEVELS),
    }


def cogvideox() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler

    words = tokenizer()
    said = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    return {
        "text_encoder": t5(len(words)),
        "tokenizer": words,
        "vae": AutoencoderKLCogVideoX(latent_channels=4, **LEVELS),
        "scheduler": CogVideoXDDIMScheduler(**said, snr_shift_scale=3.0, clip_sample=False),
    }


def motif_video() -> Mapping[str, Any]:
    from diffusers import ClassifierFreeGuidance
    from transformers import T5Gemma2EncoderConfig
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

    words = tokenizer()
    text = {
        **SMALL,
        "hidden_size": 16,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": len(words),
        "dropout_rate": 0.0,
    }
    config = T5Gemma2EncoderConfig(
        text_config=text, vision_config={**SMALL, "image_size": 28, "patch_size": 14},
        image_token_index=3, boi_token_index=4, eoi_token_index=5, mm_tokens_per_image=4,
    )  # fmt: skip
    return {
        "text_encoder": T5Gemma2Encoder(config, eoi_token_index=5),
        "tokenizer": words,
        "vae": wan_vae(),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def sd3() -> Mapping[str, Any]:
    words, short = tokenizer(), tokenizer(77)
    encoders = {"text_encoder": clip(short, projected=6), "text_encoder_2": clip(short, projected=6)}
    tokenizers = {"tokenizer": short, "tokenizer_2": short, "tokenizer_3": words}
    return {**encoders, "text_encoder_3": t5(len(words)), **tokenizers, "vae": image_vae()}


def flux() -> Mapping[str, Any]:
    words, short = tokenizer(), tokenizer(77)
    encoders = {"text_encoder": clip(short), "text_encoder_2": t5(len(words))}
    return {**encoders, "tokenizer": short, "tokenizer_2": words, "vae": image_vae()}
