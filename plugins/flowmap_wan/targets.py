"""Which layers of Wan's get adapters, and who reads those of others."""

from __future__ import annotations

BLOCKS = r"blocks\.\d+\.(attn1\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2))"
"""Self-attention and feed-forward."""
LARGE = r"blocks\.\d+\.(attn[12]|ffn)\..*"
"""Attention, to the text too, and feed-forward: nearly all weights."""
TIMES = r"condition_embedder\.(time|delta)_embedder\.linear_[12]"
"""Both time embedders, of a student."""
PIPELINE = "WanPipeline"
"""Of diffusers: whose LoRA loader knows the layouts of files."""
