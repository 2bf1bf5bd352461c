"""A flow map whose end time enters at its last layer alone: heads on a fine grid, many from one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import final

import torch
from attrs import define
from torch import Tensor, nn

from flowmap import FlowMap
from flowmap._types import Cache, Cond, Latent, Time, to_device
from flowmap.model import Spans, Wrapped

SLACK = 1e-6
"""Times in float32 that are the same, made by different grids."""


@define(eq=False)
class Ran:
    """What the last layer took and gave in one call."""

    h: Tensor | None = None
    y: Tensor | None = None
    times: int = 0


class Bank(nn.Module):
    """What each head adds to the last layer: weight [N, out, in], bias [N, out], float32, zeros at first."""

    def __init__(self, heads: int, layer: nn.Module, bias: bool) -> None:
        super().__init__()
        out, inp = int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]
        device = next(layer.parameters()).device
        self.weight = nn.Parameter(torch.zeros(heads, out, inp, device=device))
        self.bias = nn.Parameter(torch.zeros(heads, out, device=device)) if bias else None

    def forward(self, h: Tensor, mix: Tensor) -> Tensor:
        """Σ_k mix_k W_k h of h [B, ..., in] and mix [B, N], in the type of h."""
        w = torch.einsum("bn,noi->bio", mix.to(self.weight), self.weight).to(h.dtype)
        y = h.flatten(1, -2) @ w
        if self.bias is not None:
            y = y + (mix.to(self.bias) @ self.bias).to(h.dtype)[:, None]
        return y.reshape(*h.shape[:-1], -1)


@final
class Decoder(Wrapped):
    """Heads W_1 ... W_N, one for each interval of a fine grid 1 = τ_0 > ... > τ_N = 0, in place of the last layer:

        u(z, t, r) = Σ_k c_k W_k H(z, t),      c_k = |[τ_k+1, τ_k] ∩ [r, t]| / (t - r),

    and on the diagonal the head of the interval that begins at t, or has t in it. H is all of `u` at its one time t, up
    to the linear layer at the path `layer`; W_k is that layer and what a `Bank` adds, so that at first u is the network
    itself wherever it ends. Between points of the grid u is as exact as on them. PDD, arXiv:2607.26004.

    Where a call ends changes a sum of small matrices, so several ends are had from one: see `Spans`.
    """

    def __init__(self, u: FlowMap, layer: str, times: Sequence[float]) -> None:
        super().__init__(u)
        self.layer = layer
        self.times = torch.tensor(times, dtype=torch.float32, device="cpu")  # with numbers, wherever it is built
        last = u.get_submodule(layer)
        self.bank = Bank(len(times) - 1, last, bias=getattr(last, "bias", None) is not None)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        """[B, ...], or [K, B, ...] of `Spans`."""
        if not isinstance(cache, Spans):
            with self._with(self.mixture(t, r)):
                out: Latent = self.u(z, t, t, cond, cache)
            return out
        first, *others = (self.mixture(*span) for span in zip(cache.starts, cache.ends, strict=True))
        with self._with(first) as ran:
            out = self.u(z, t, t, cond)
        assert ran.h is not None and ran.y is not None
        with torch.no_grad():
            changes = [self.bank(ran.h, mix - first) for mix in others]
        return torch.stack([out, *(out.detach() + carried(out, ran.y, change) for change in changes)])

    def mixture(self, t: Time, r: Time) -> Tensor:
        """c [B, N]."""
        return mixture(to_device(self.times, t.device), t, r)

    def trained(self) -> Mapping[str, nn.Parameter]:
        return {**self.u.trained(), **{f"bank.{name}": p for name, p in self.bank.named_parameters()}}

    @torch.no_grad()
    def fused(self, times: Sequence[float]) -> Decoder:
        """The same network with one head a step of the schedule `times`, of which all are points of the grid:
        between them it is this one to rounding."""
        made = Decoder(self.u, self.layer, times)
        made.bank.to(self.bank.weight)
        t = made.times.to(self.bank.weight)
        mix = self.mixture(t[:-1], t[1:]).to(self.bank.weight)
        made.bank.weight.copy_(torch.einsum("sn,noi->soi", mix, self.bank.weight))
        if made.bank.bias is not None and self.bank.bias is not None:
            made.bank.bias.copy_(mix @ self.bank.bias)
        made.guidance = self.guidance
        return made

    def _with(self, mix: Tensor) -> AbstractContextManager[Ran]:
        return with_heads(self.u, self.layer, self.bank, mix)


def mixture(τ: Tensor, t: Time, r: Time) -> Tensor:
    """c [B, N] of the intervals of a grid τ [N + 1], see `Decoder`."""
    τ = τ.to(t.dtype)
    overlap = (torch.minimum(t[:, None], τ[:-1]) - torch.maximum(r[:, None], τ[1:])).clamp_min(0)
    at = (τ[1:-1] >= t[:, None] - SLACK).sum(1)
    here = at[:, None] == torch.arange(len(τ) - 1, device=τ.device)
    gap = (t - r)[:, None]
    return torch.where(gap > 0, overlap / gap.clamp_min(torch.finfo(t.dtype).tiny), here.to(overlap.dtype))


@contextmanager
def with_heads(net: nn.Module, layer: str, bank: Bank, mix: Tensor) -> Iterator[Ran]:
    """While entered, the last layer is what `mix` makes of the heads: for a call, as roles may share it."""
    ran = Ran()

    def decode(_: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
        ran.h, ran.times = given[0], ran.times + 1
        if ran.times > 1 or y.shape[0] != mix.shape[0]:
            raise ValueError(
                f"Decoder.layer = {layer!r}: ran {ran.times} times in a call, on {y.shape[0]} of {mix.shape[0]} "
                "samples: must be the network's last linear layer, which runs once on all of them"
            )
        ran.y = y + bank(ran.h, mix).to(y.dtype)
        return ran.y

    handle = net.get_submodule(layer).register_forward_hook(decode)
    try:
        yield ran
    finally:
        handle.remove()
    if not ran.times:
        raise ValueError(f"Decoder.layer = {layer!r}: did not run: must be the network's last linear layer")


def carried(out: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """By how much `out` changes where y does by `change`: exact, as what follows the last layer is linear in it, such
    as putting patches in their places. The vector-Jacobian product is linear, too, and its transpose is what is asked
    for; of the network's graph only the part after y is walked."""
    with torch.enable_grad():
        probe = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, y, probe, create_graph=True, retain_graph=True)
        (forth,) = torch.autograd.grad(back, probe, change.to(back.dtype))
    return forth.detach()


def last_linear(u: nn.Module) -> str:
    """The path of the linear layer that is defined last, which in a transformer is its output's; adapters aside."""
    found = [
        name
        for name, layer in u.named_modules()
        if isinstance(getattr(layer, "out_features", None), int) and ".lora_" not in name and "base_layer" not in name
    ]
    if not found:
        raise ValueError(f"{type(u).__name__} has no linear layer, which heads could take the place of")
    return found[-1]
