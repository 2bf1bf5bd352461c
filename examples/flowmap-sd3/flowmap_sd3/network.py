"""The adapter around diffusers' `SD3Transformer2DModel`."""

from __future__ import annotations

import copy

import torch
from diffusers import SD3Transformer2DModel

from flowmap import FlowMap
from flowmap.time_embedding import lift, pair


class SD3FlowMap(FlowMap):
    """cond: "text" [B, tokens, joint_attention_dim], "pooled" [B, pooled_projection_dim]."""

    def __init__(self, net: SD3Transformer2DModel, role: str) -> None:
        super().__init__()
        self.two_times = role == "student"
        self.net = lift(net, "time_text_embed") if self.two_times else net
        self.net.requires_grad_(role != "teacher")

    def forward(self, z, t, r, cond, cache=None):
        times = 1000 * (pair(t, r) if self.two_times else t)
        text, pooled = (cond[name].to(self.net.dtype) for name in ("text", "pooled"))
        u = self.net(z.squeeze(1).to(self.net.dtype), text, pooled, timestep=times, return_dict=False)[0]
        return u.unsqueeze(1).to(z.dtype)

    @property
    def blocks(self):
        return list(self.net.transformer_blocks)


def build(spec, roles, device, dtype):
    """A network of its own for every role."""
    if spec.path is not None:
        net = SD3Transformer2DModel.from_pretrained(spec.path, subfolder="transformer", dtype=dtype)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = SD3Transformer2DModel(**spec.config)
    if spec.checkpointing:
        net.enable_gradient_checkpointing()
    net = net.to(device, dtype).eval()
    return {role: SD3FlowMap(copy.deepcopy(net), role) for role in roles}
