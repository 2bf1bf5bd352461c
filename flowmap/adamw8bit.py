"""AdamW whose moments take 8 bits a number, between steps.

    m ≈ s c |c| / 127²,  c in -127..127        v ≈ s (c / 255)⁴,  c in 0..255        s: the largest of 256 in a row

Roots, since what a step divides by must not be rounded to 0 beside a larger neighbour. A number is rounded up or down,
so that it is right in the mean over steps: what v changes by in one is less than a code, and rounded to the nearest it
would stay where it is for good. Which way is no chance: an entry is rounded up in its n-th step where its fraction is
above a point that walks through [0, 1) evenly, by the golden ratio. So a run goes on as if it had not stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adamw import adamw

from .recipe import AdamW

BLOCK = 256
SMALL = 4096
"""Numbers below which a tensor's moments stay float32."""
CODED = {"m": torch.uint8, "v": torch.uint8}
"""What of the state is codes, in the shape of the parameter."""
GOLDEN, PLASTIC = (math.sqrt(5) - 1) / 2, 0.7548776662466927


@frozen
class AdamW8bit(AdamW):
    """`AdamW`, with its moments in 8 bits: 2 bytes a trained number in place of 8. In one process."""


class Optimizer8bit(torch.optim.Optimizer):
    """`found_inf`: not 0 where a step is to change nothing, as of torch's fused kernels."""

    found_inf: Tensor | None = None

    def __init__(self, parameters: Iterable[Any], settings: AdamW) -> None:
        given = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
        super().__init__(parameters, given)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, group, self.state[p])

    def _step(self, p: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """One tensor: only of this one the moments are there in float32."""
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            if p.numel() < SMALL:
                state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            else:
                for name, zero in (("m", 128), ("v", 0)):
                    state[name] = torch.full_like(p, zero, dtype=torch.uint8)
                    state[f"{name}_scale"] = p.new_zeros(-(-p.numel() // BLOCK))
        coded = "m" in state
        m, v = (decoded(state, name) for name in CODED) if coded else (state["exp_avg"], state["exp_avg_sq"])
        beta1, beta2 = group["betas"]
        told: dict[str, Any] = {"beta1": beta1, "beta2": beta2, "eps": 1e-8, "amsgrad": False, "maximize": False}
        told |= {"lr": group["lr"], "weight_decay": group["weight_decay"], "found_inf": self.found_inf, "fused": True}
        adamw([p], [p.grad], [m], [v], [], [state["step"]], **told)  # type: ignore[list-item]
        for name, moment in (("m", m), ("v", v)) if coded else ():
            new = encoded(moment, name, state["step"])
            for key, value in zip((name, f"{name}_scale"), new, strict=True):
                state[key] = value if self.found_inf is None else torch.where(self.found_inf > 0, state[key], value)


def encoded(x: Tensor, name: str, step: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, in the shape of x; the largest |x| of each block) of the moment "m" or "v"."""
    most, power = (127, 2) if name == "m" else (255, 4)
    blocks = F.pad(x.flatten(), (0, -x.numel() % BLOCK)).unflatten(0, (-1, BLOCK))
    scale = blocks.abs().amax(1)
    share = blocks.abs() / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    below = (share ** (1 / power) * most).floor().clamp_max(most - 1)
    low, high = ((below + i).div(most) ** power for i in (0, 1))
    at = torch.ones_like(blocks, dtype=torch.float64).flatten().cumsum(0).view_as(blocks)
    point = (at * PLASTIC + step.double() * GOLDEN) % 1
    codes = below + ((share - low) / (high - low) > point)
    if name == "m":
        codes = codes * blocks.sign() + 128
    return codes.flatten()[: x.numel()].view_as(x).to(torch.uint8), scale


def decoded(state: dict[str, Tensor], name: str) -> Tensor:
    """Float32."""
    codes, scale = state[name], state[f"{name}_scale"]
    c = F.pad(codes.flatten(), (0, -codes.numel() % BLOCK)).unflatten(0, (-1, BLOCK)).float()
    if name == "m":
        c = (c - 128) / 127
        x = c * c.abs() * scale[:, None]
    else:
        x = (c / 255) ** 4 * scale[:, None]
    return x.flatten()[: codes.numel()].view_as(codes)
