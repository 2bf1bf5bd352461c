"""Which layers of Wan's get adapters."""

from __future__ import annotations

BLOCKS = r"blocks\.\d+\.(attn1\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2))"
TIMES = r"condition_embedder\.(time|delta)_embedder\.linear_[12]"


def targets(*, times: bool) -> str:
    """The linear layers: self-attention and feed-forward, and both time embedders."""
    return f"({BLOCKS}|{TIMES})" if times else BLOCKS
