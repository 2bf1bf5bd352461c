"""Frozen linear layers that hold codes of few bits, of which each call makes weights:

    W ≈ s c     int8: c whole, |c| <= 127, s = max |W| / 127 of a row
                fp8:  c of 4 bits of exponent and 3 of fraction (e4m3), s = max |W| / 448 of a row
                nf4:  c one of 16 quantiles of the normal distribution, s = max |W| of 64 numbers of a row,
                      arXiv:2305.14314, s in bfloat16 and not quantised again: 4.25 bits a weight

A row is coded on its own: rows of a weight, as a rank holds them, are rows of its codes. s c is rounded once, to the
type of x; of nf4, c was rounded to it before. A call holds its weight while it runs, and its backward pass makes it
again: for it codes are kept. Gradients reach x alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, cast

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.nn import functional as F

from flowmap.model import Rows

from .bits import Bits

FP8 = torch.float8_e4m3fn
MOST = {"int8": 127.0, "fp8": torch.finfo(FP8).max}
BLOCK = 64
"""Numbers of a row that have a scale together, in nf4."""


class Quantised(nn.Linear):
    """y = s c x + b of a layer whose weight had the type `dtype`. weight: c; of nf4 two in a byte, and rows filled up.

    scale: s, [out, 1] float32, or [out, in / 64] bfloat16 of nf4.
    """

    scale: nn.Parameter

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bits, self.dtype = bits, layer.weight.dtype
        self.bias = layer.bias
        for name, tensor in zip(("weight", "scale"), quantise(layer.weight.detach(), bits), strict=True):
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        given = x, self.weight, self.scale, self.bias
        if not torch.is_grad_enabled():
            return Read.forward(*given)  # the same operations
        read = Read if torch.compiler.is_compiling() else ReadBothWays
        return cast("Tensor", read.apply(*given))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


def quantise(rows: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """(c, s) of rows [n, in] of a weight."""
    w, least = rows.float(), torch.finfo(torch.float32).tiny
    if bits == "nf4":
        w = F.pad(w, (0, -w.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
        scale = w.abs().amax(-1).clamp_min(least).to(torch.bfloat16)
        middles = (levels(w.device)[1:] + levels(w.device)[:-1]) / 2
        codes = torch.bucketize(w / scale.float()[..., None], middles).flatten(1)
        return (codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8), scale
    scale = w.abs().amax(1, keepdim=True).clamp_min(least) / MOST[bits]
    return ((w / scale).round().to(torch.int8) if bits == "int8" else (w / scale).to(FP8)), scale


def weight_of(codes: Tensor, scale: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """s c, [n, columns]."""
    if codes.dtype != torch.uint8:
        return codes.to(dtype, copy=True).mul_(scale)
    two = levels(codes.device).to(dtype)
    pairs = torch.cartesian_prod(two, two)  # of every byte: an index is four times as large as what it stands for
    w = F.embedding(codes.int(), pairs).view(len(codes), -1, BLOCK).mul_(scale[..., None])
    return w.flatten(1)[:, :columns]


def levels(device: torch.device) -> Tensor:
    """The 16 numbers of nf4, -1 to 1 with a 0, float32: quantiles of the normal distribution, 8 positive, 7 negative.

    Those at even steps between 1/2 and the mean of 1 - 1/30 and 1 - 1/32, over the largest, arXiv:2305.14314.
    """
    return _levels().to(CPU if device.type == "meta" else device)


CPU = torch.device("cpu")


@cache
def _levels() -> Tensor:
    end = 1 - (1 / 30 + 1 / 32) / 2
    kind: Any = {"dtype": torch.float64, "device": CPU}  # whatever is meant to be made elsewhere just now
    above, below = (torch.special.ndtri(torch.linspace(end, 0.5, n, **kind)[:-1]) for n in (9, 8))
    found = torch.cat([-below, torch.zeros(1, **kind), above]).sort().values
    return (found / found.max()).float()


class Read(torch.autograd.Function):
    """y = s c x + b;     dx = (s c)^T dy."""

    @staticmethod
    def forward(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight_of(codes, scale, x.shape[-1], x.dtype), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, codes, scale, _ = inputs
        ctx.columns = x.shape[-1]
        ctx.save_for_backward(codes, scale)
        ctx.save_for_forward(codes, scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale = ctx.saved_tensors
        return dy @ weight_of(codes, scale, ctx.columns, dy.dtype), None, None, None


class ReadBothWays(Read):
    """With a derivative in forward mode, which torch.compile does not take."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, *_: None) -> Tensor:
        codes, scale = ctx.saved_tensors
        return F.linear(tx, weight_of(codes, scale, ctx.columns, tx.dtype))


# ------------------------------------------------------------------ networks
def linear(net: nn.Module, names: str) -> list[str]:
    """Its linear layers whose whole names match an expression."""
    return [n for n, layer in net.named_modules() if isinstance(layer, nn.Linear) and re.fullmatch(names, n)]


def replace(net: nn.Module, layers: Iterable[str], bits: Bits) -> None:
    """The linear layers of these names by what is coded of them, in place, one by one."""
    for name in layers:
        owner, _, own = name.rpartition(".")
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(net.get_submodule(owner), own, Quantised(layer, bits).train(layer.training))


@frozen(eq=False)
class Exact:
    """The weights that a quantised network was made of: `make` opens them when they are asked for."""

    make: Callable[[], Callable[[str], Rows]]
    _opened: list[Callable[[str], Rows]] = field(factory=list, init=False)

    def __call__(self, name: str) -> Rows:
        if not self._opened:
            self._opened.append(self.make())
        return self._opened[0](name)


def made_of(net: nn.Module, exact: Callable[[], Callable[[str], Rows]]) -> None:
    """Write down at `net` how its weights are had as they were: by the base's names, rows of each."""
    vars(net)["_exact"] = Exact(exact)


def weights(net: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Tensor, Rows | None]]:
    """(name, shape, tensor, rows) of all weights and buffers below all adapters, by the names and shapes of the base;
    rows: of one that is quantised, where it is not, for `tensor` is codes."""
    low, exact = _quantised(net), vars(net).get("_exact")
    for name, value in net.state_dict(keep_vars=True).items():
        own = name.replace(".base_layer.", ".")
        path, _, last = own.rpartition(".")
        layer = low.get(path)
        if ".lora_" in name or (layer is not None and last == "scale"):
            continue
        if layer is None or last == "bias":
            yield own, tuple(value.shape), value, None
        else:
            assert exact is not None, f"{own} is quantised, and nothing says what it was made of"
            yield own, (layer.out_features, layer.in_features), value, exact(own)


def filling(net: nn.Module, rows: Callable[[str], Rows]) -> Callable[[str], Rows]:
    """What the parameters of `net` are filled with, by their names in it: `rows` of a base, coded where it is."""
    low = _quantised(net)

    def of(name: str) -> Rows:
        own = name.replace(".base_layer.", ".")
        path, _, last = own.rpartition(".")
        layer = low.get(path)
        if layer is None or last == "bias":
            return rows(own)
        part, source = int(last == "scale"), rows(f"{path}.weight")
        return lambda which: quantise(source(which), layer.bits)[part]

    return of


def _quantised(net: nn.Module) -> dict[str, Quantised]:
    found = {name: layer for name, layer in net.named_modules() if isinstance(layer, Quantised)}
    return {name.removesuffix(".base_layer"): layer for name, layer in found.items()}
