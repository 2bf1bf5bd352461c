"""Published transformers as data: what can be known of them without their files. By hub id, what the class is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LTX: Mapping[str, Any] = {
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "cross_attention_dim": 2048,
    "num_layers": 28,
    "caption_channels": 4096,
}
"""arXiv:2501.00103, 1.9 G parameters."""
HUNYUAN_VIDEO: Mapping[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 20,
    "num_single_layers": 40,
    "num_refiner_layers": 2,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "rope_axes_dim": (16, 56, 56),
}
"""arXiv:2412.03603, 12.8 G."""
COGVIDEOX_5B: Mapping[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "num_layers": 42,
    "patch_size": 2,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "max_text_seq_length": 226,
    "use_rotary_positional_embeddings": True,
}
"""arXiv:2408.06072, 5.6 G."""
QWEN_IMAGE: Mapping[str, Any] = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
}
"""arXiv:2508.02324, 20 G."""
STEP_VIDEO: Mapping[str, Any] = {
    "num_attention_heads": 48,
    "attention_head_dim": 128,
    "in_channels": 64,
    "out_channels": 64,
    "num_layers": 48,
    "caption_channels": (6144, 1024),
}
"""arXiv:2502.10248, 29 G, called 30."""
WAN_I2V_14B: Mapping[str, Any] = {
    "in_channels": 36,
    "out_channels": 16,
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "num_layers": 40,
    "text_dim": 4096,
    "freq_dim": 256,
    "image_dim": 1280,
    "added_kv_proj_dim": 5120,
    "rope_max_seq_len": 1024,
}
"""arXiv:2503.20314, 16.4 G; of 480 and of 720 lines alike."""
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": WAN_I2V_14B,
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": WAN_I2V_14B,
    "Lightricks/LTX-Video": LTX,
    "hunyuanvideo-community/HunyuanVideo": HUNYUAN_VIDEO,
    "THUDM/CogVideoX-5b": COGVIDEOX_5B,
    "Qwen/Qwen-Image": QWEN_IMAGE,
    "stepfun-ai/stepvideo-t2v": STEP_VIDEO,
}
