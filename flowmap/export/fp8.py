"""`precision = "fp8"`: products of the repeated blocks in 8 bits, all else in float16.

    y = s_x q(x) · (s_W q(W))ᵀ + b,    q(x) = e4m3(x / s_x) in [-448, 448],    s = max |·| / 448

FP8 formats, arXiv:2209.05433. One s a tensor: a weight's is its own; an input's is the largest that was seen on the
student's own rollouts, of several numbers of steps, so that (t, r) are those that it is called with. Engines compute
the product in 8 bits where they find this pattern; elsewhere it is the same rounding and nothing is gained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from torch import Tensor, nn
from torch.nn import functional as F

from .._types import Rng
from ..experts import fewest
from ..model import FlowMap
from ..rollout import sample
from .errors import ExportError, ProfileError
from .family import Family
from .graph import Graph
from .manifest import Built
from .runner import Checked
from .spec import Asked, ShapeProfile

if TYPE_CHECKING:
    from ..model import Codec

E4M3 = torch.float8_e4m3fn
MOST = 448.0
"""The largest number of this format; there is no infinity, what is beyond is cut."""
LEAST = 2.0**-14
"""Of a scale, which is float16: below are its subnormals, which some processors take for zero."""
STEPS = (1, 2, 4, 8)
"""Of the rollouts on which inputs are seen, each of another noise and prompt."""
PROMPTS = (
    "a red car on a coast road",
    "two people talk in a kitchen",
    "waves break on dark rocks",
    "a dog runs through snow",
)
CAPABILITY = (8, 9)
"""The first GPUs that multiply in it."""


@torch.library.custom_op("flowmap::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor) -> Tensor:
    """q(x) = e4m3(x / scale); scale [] of x's type."""
    return (x.float() / scale.float()).clamp(-MOST, MOST).to(E4M3)


@torch.library.custom_op("flowmap::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """scale · q, of scale's type."""
    return (q.float() * scale.float()).to(scale.dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=E4M3)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(q, dtype=scale.dtype)


class Fp8Linear(nn.Module):
    """`linear` with both factors rounded. most: the largest |x| that it takes."""

    def __init__(self, linear: nn.Linear, most: float) -> None:
        super().__init__()
        w = linear.weight.detach()
        scale = _scale(float(w.abs().max()), w)
        self.register_buffer("weight", quantize(w, scale))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", _scale(most, w))
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x_scale, w_scale = self.get_buffer("input_scale"), self.get_buffer("weight_scale")
        x, w = dequantize(quantize(x, x_scale), x_scale), dequantize(self.get_buffer("weight"), w_scale)
        return F.linear(x, w, self.bias)  # type: ignore[arg-type]


def _scale(most: float, like: Tensor) -> Tensor:
    return like.new_tensor(max(most / MOST, LEAST))


def check_capabilities(asked: Asked) -> None:
    for name in asked.target.capabilities:
        if asked.precision == "fp8" and tuple(map(int, name.split("."))) < CAPABILITY:
            raise ExportError(f"compute capability {name} does not multiply in fp8: must be 8.9 or above")


@torch.no_grad()
def quantized(
    graphs: Sequence[Graph],
    u: FlowMap,
    family: Family,
    asked: ShapeProfile,
    config: Mapping[str, Any],
    device: torch.device,
    shift: float = 1.0,
    codec: Codec | None = None,
) -> tuple[Graph, ...]:
    """The graphs with `Fp8Linear` in their repeated blocks; what they share with `u` stays as it is.

    codec: for real prompts; without it, and where they are longer than was asked for, the family's example stands for
    them. Layers that no rollout comes to stay in float16.
    """
    if not any(True for graph in graphs for _ in linears(graph.module)):
        raise ExportError("precision = 'fp8': this network has no linear layer in a repeated block (an nn.ModuleList)")
    seen = _seen(
        graphs, family.runner(_calls(graphs, u, family, asked, device), config), u, family, asked, shift, codec
    )
    return tuple(evolve(graph, module=_replaced(graph.module, seen)) for graph in graphs)


def linears(module: nn.Module, inside: bool = False, path: str = "") -> Iterator[tuple[str, nn.Linear]]:
    """Those in repeated blocks, by name: what embeds times and text, and the head, is small and sensitive."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            if inside:
                yield path + name, child
        else:
            yield from linears(child, inside or isinstance(child, nn.ModuleList), f"{path}{name}.")


def _calls(
    graphs: Sequence[Graph], u: FlowMap, family: Family, asked: ShapeProfile, device: torch.device
) -> dict[str, Checked]:
    profile = family.profile(u, asked)
    return {g.name: Checked(Built.of(g, profile, "fp8", ""), g.module, device) for g in graphs}


def _seen(
    graphs: Sequence[Graph],
    made: FlowMap,
    u: FlowMap,
    family: Family,
    asked: ShapeProfile,
    shift: float,
    codec: Codec | None,
) -> dict[str, float]:
    """The largest |input| of each layer, by name: the graphs of a network name the same layer alike."""
    found: dict[str, float] = {}

    def look(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name] = max(found.get(name, 0.0), float(args[0].abs().max()))

    with ExitStack() as hooks:
        for graph in graphs:
            for name, linear in linears(graph.module):
                hooks.callback(linear.register_forward_pre_hook(partial(look, name)).remove)
        for k, steps in enumerate(max(n, fewest(made)) for n in STEPS):
            z, cond = family.example(u, asked.usual(), Rng.seeded(14, k))
            if codec is not None:
                real = codec.encode_prompts([PROMPTS[(k + row) % len(PROMPTS)] for row in range(len(z))])
                with suppress(ProfileError):  # prompts of more tokens than were asked for
                    texts = {name: value.to(z.device) for name, value in real.items()}
                    sample(made, z, {**cond, **texts}, steps, shift=shift)
                    continue
            sample(made, z, cond, steps, shift=shift)
    return found


def _replaced(module: nn.Module, seen: Mapping[str, float]) -> nn.Module:
    """A copy that shares every tensor, with other layers."""
    new = copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})
    for name, linear in [*linears(new)]:
        if name in seen:
            parent, _, last = name.rpartition(".")
            setattr(new.get_submodule(parent), last, Fp8Linear(linear, seen[name]))
    return new


def translations() -> dict[Any, Any]:
    """What the two operators are in ONNX, for torch's exporter."""
    import onnx
    import onnxscript

    op: Any = onnxscript.opset21  # its types are of constants, and it is called with the exporter's values
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])

    def quantize_linear(x: Any, scale: Any) -> Any:
        return op.QuantizeLinear(x, scale, op.Constant(value=zero))

    def dequantize_linear(q: Any, scale: Any) -> Any:
        return op.DequantizeLinear(q, scale, op.Constant(value=zero))

    operators = torch.ops.flowmap
    return {operators.quantize.default: quantize_linear, operators.dequantize.default: dequantize_linear}
