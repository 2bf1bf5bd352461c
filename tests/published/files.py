"""Files as publishers lay them out, of the tiny Wan's weights; and a block-causal Wan to hold them against.

The key names are those of Wan's own code, by rules of their own: the product's table is not asked.
"""

import re
from itertools import accumulate
from pathlib import Path

import flowmap_digits
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
BASE = Path(flowmap_digits.__file__).parent / "assets" / "tiny_wan"
RULES = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.norm2\.", ".norm3."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)


def wan(seed=0):
    """The tiny Wan, its weights moved, so that it is not the base's own transformer."""
    net = WanTransformer3DModel.from_pretrained(BASE, subfolder="transformer").eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p += 0.02 * torch.randn(p.shape, generator=rng)
    return net


def original(net):
    """Its tensors as Wan's own code calls them."""
    found = {}
    for name, value in net.state_dict().items():
        for old, new in RULES:
            name = re.sub(old, new, name)
        found[name] = value.clone()
    return found


class Masked:
    """diffusers' attention, under a mask where it is self-attention."""

    def __init__(self, mask):
        self.mask, self.plain = mask, WanAttnProcessor()

    def __call__(self, attn, h, text=None, mask=None, rope=None, **more):
        return self.plain(attn, h, text, self.mask if text is None else mask, rope, **more)


@torch.no_grad()
def block_causal(net, x, z, t, text, sizes, history=0.0):
    """u of the chunk `z` after the clean frames `x`: diffusers' Wan on the whole sequence, a time a token, no cache.

    sizes: frames of all chunks, the last z's. history: the time of clean frames.
    """
    frames, tokens = torch.cat([x, z], 1), (z.shape[-1] // 2) * (z.shape[-2] // 2)
    ends = [*accumulate(sizes)]
    assert ends[-1] == frames.shape[1]
    chunk = torch.tensor([sum(f >= end for end in ends) for f in range(ends[-1])]).repeat_interleave(tokens)
    times = torch.full((len(z), ends[-1]), history)
    times[:, x.shape[1] :] = t
    net.set_attn_processor(Masked(chunk[:, None] >= chunk[None]))
    made = net(
        frames.transpose(1, 2),
        1000 * times.repeat_interleave(tokens, 1),
        text,
        return_dict=False,
    )[0]
    return made.transpose(1, 2)[:, x.shape[1] :]
