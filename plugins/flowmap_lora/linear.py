"""A linear layer with sets of adapters, of which the running call uses one:

    y = W x + b + s B A x,     s = alpha / rank

A [rank, in] and B [out, rank] are float32, for whom they are trained and saved. Where W is float32 and products are in
full, y = W' x + b with W' = W + s B A, made for each call: tokens meet one product, as without adapters. Where W is
narrow, or products are in TF32, A and B multiply in the type of W, as rounded copies that are made for each call, and
the whole sum is rounded once: if W x were rounded first, or s B A were added into W, what is below half of the last
place there would be lost, all of a young adapter among it (docs/large.md has the numbers). Of a base that is quantised,
`quantised.Quantised`, W is made for each call as well.

Names are peft's: `base_layer.weight`, `lora_A.<set>.weight`, `lora_B.<set>.weight`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowmap.kernels import in_full

from .quantised import Quantised, weight_of
from .sets import Sets


class LoraLinear(nn.Module):
    """`base_layer`, frozen or not, and what the running set adds to it. scaling: s, by set."""

    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Linear, sets: Sets) -> None:
        super().__init__()
        self.base_layer, self.sets = base_layer, sets
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self._pairs: dict[str, tuple[Any, Any]] = {}  # the layers of both, of whom every call asks one
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    def add(self, name: str, rank: int, scale: float) -> None:
        """A set, whose tensors have no numbers yet."""
        kind = {"bias": False, "device": self.weight.device, "dtype": torch.float32}
        self.lora_A[name] = nn.utils.skip_init(nn.Linear, self.in_features, rank, **kind)
        self.lora_B[name] = nn.utils.skip_init(nn.Linear, rank, self.out_features, **kind)
        self.scaling[name] = scale
        self._pairs[name] = self.lora_A[name], self.lora_B[name]

    def forward(self, x: Tensor) -> Tensor:
        if (name := self.sets.name) is None or name not in self.scaling:
            y: Tensor = self.base_layer(x)
            return y
        (a, b), scale, base = self.pair(name), self.scaling[name], self.base_layer
        w = base.weight
        low = base.scale if isinstance(base, Quantised) else None
        known = type(base) is nn.Linear and x.dtype == w.dtype
        if (low is None and not known) or autocasts(x.device.type):
            return plus(base(x), x, a, b, scale)
        return once(x, w, base.bias, a, b, scale, low)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B of a set."""
        a, b = self._pairs[name]
        return a.weight, b.weight

    def change(self, name: str) -> Tensor:
        """s B A of a set, float32."""
        a, b = (p.detach().float() for p in self.pair(name))
        return self.scaling[name] * (b @ a)

    @property
    def weight(self) -> Tensor:
        """The base's, for who asks it for device and type; codes where it is quantised."""
        return self.base_layer.weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weight, before it was quantised."""
        return self.base_layer.dtype if isinstance(self.base_layer, Quantised) else self.weight.dtype

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device; the meta device has none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def plus(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """y + s B A x of y [..., out] and x [..., in], in the type of y, which is rounded before and after."""
    h = F.linear(x.to(y.dtype).flatten(0, -2), a.to(y.dtype))
    return torch.addmm(y.flatten(0, -2), h, b.to(y.dtype).t(), alpha=scale).view(y.shape)


def once(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, low: Tensor | None = None
) -> Tensor:
    """W x + b + s B A x, in the type of x, which W and b are in, rounded once. low: the scales of W, if w is codes."""
    given = x, w, bias, a, b, scale, low
    if not torch.is_grad_enabled():  # the same operations
        return F.linear(x, merged(*given), bias) if merges(x) else Once.forward(*given)[0]
    if torch.compiler.is_compiling():
        y, _ = Once.apply(*given)
    else:
        y, _ = OnceBothWays.apply(*given)
    return cast("Tensor", y)


def merges(x: Tensor) -> bool:
    """Whether W' = W + s B A keeps what the adapters add, in the type of x and in products of it."""
    return x.dtype.itemsize >= 4 and in_full(x.device)


def merged(x: Tensor, w: Tensor, _: Any, a: Tensor, b: Tensor, scale: float, low: Tensor | None) -> Tensor:
    """W' in the type of x."""
    return torch.addmm(_weight(w, low, x), b.to(x.dtype), a.to(x.dtype), alpha=scale)


class Once(torch.autograd.Function):
    """y = W' x + b, or y = [W, s B] [x, A x] + b, one product, whose sum is rounded once. Gradients of A and B are two
    thin products:

    dx = W'^T dy, or W^T dy + A^T dh,     dA = dh x^T,     dB = s dy (A x)^T,     dh = s B^T dy.

    W' is made here and again in the backward pass, and not held between; so is W, of codes.
    """

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, low: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h = F.linear(x, a.to(x.dtype))
        if merges(x):
            return F.linear(x, merged(x, w, bias, a, b, scale, low), bias), h
        w = _weight(w, low, x)
        return F.linear(torch.cat([x, h], -1), torch.cat([w, (scale * b).to(w.dtype)], 1), bias), h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, a, b, ctx.scale, low = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, a, b, output[1], low)
        ctx.save_for_forward(x, w, a, b, output[1], low)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, w, a, b, h, low = ctx.saved_tensors
        rows = dy.flatten(0, -2)
        dh = ctx.scale * (rows @ b.to(dy.dtype))
        dx = None
        if ctx.needs_input_grad[0] and merges(x):
            dx = (rows @ merged(x, w, None, a, b, ctx.scale, low)).view(x.shape)
        elif ctx.needs_input_grad[0]:
            dx = torch.addmm(rows @ _weight(w, low, x), dh, a.to(dy.dtype)).view(x.shape)
        da = wide(dh.t(), x.flatten(0, -2)).to(a.dtype)
        db = ctx.scale * wide(rows.t(), h.flatten(0, -2)).to(b.dtype)
        dw = rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return dx, dw, rows.sum(0) if ctx.needs_input_grad[2] else None, da, db, None, None


def _weight(w: Tensor, low: Tensor | None, x: Tensor) -> Tensor:
    return w if low is None else weight_of(w, low, x.shape[-1], x.dtype)


def wide(p: Tensor, q: Tensor) -> Tensor:
    """p q, in float32 if their type is narrow, so that parts of a batch may be summed."""
    if p.dtype.itemsize >= 4:
        return p @ q
    return torch.mm(p, q, out_dtype=torch.float32) if p.is_cuda else p.float() @ q.float()


class OnceBothWays(Once):
    """With a derivative in forward mode, which torch.compile does not take."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, None]:
        x, w, a, b, h, low = ctx.saved_tensors
        tx, tw, tbias, ta, tb, *_ = tangents
        made = [] if tx is None else [plus(F.linear(tx, _weight(w, low, x)), tx, a, b, ctx.scale)]
        made += [] if tw is None else [F.linear(x, tw)]
        made += [] if tbias is None else [tbias.expand(*h.shape[:-1], -1)]
        made += [] if ta is None else [ctx.scale * F.linear(F.linear(x, ta.to(x.dtype)), b.to(x.dtype))]
        made += [] if tb is None else [ctx.scale * F.linear(h, tb.to(x.dtype))]
        return (sum(made[1:], made[0]) if made else None), None
