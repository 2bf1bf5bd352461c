"""What tensors of Wan's transformer are called: in diffusers, and in Wan's own files, which ComfyUI reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flowmap.export.errors import ExportError

ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
BLOCK: Mapping[str, str] = {
    **{f"attn1.{theirs}": f"self_attn.{own}" for theirs, own in ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{own}" for theirs, own in ATTENTION.items()},
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}
"""Of a block's parts."""
REST: Mapping[str, str] = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
PART = re.compile(r"(?:blocks\.(?P<number>\d+)\.)?(?P<part>.+?)(?P<of>\.weight|\.bias)?")


def original(name: str) -> str:
    """`blocks.0.self_attn.q.weight` of `blocks.0.attn1.to_q.weight`; a layer's name may be given without `.weight`.

    An `ExportError` for what Wan's text-to-video transformer does not have.
    """
    found = PART.fullmatch(name)
    number, part, of = found.groups() if found else (None, name, None)
    known = REST if number is None else BLOCK
    if part not in known:
        raise ExportError(
            f"{name}: is no tensor of Wan's text-to-video transformer, so its own files have no name for it"
        )
    return ("" if number is None else f"blocks.{number}.") + known[part] + (of or "")
