"""What the products of adapters cost in exactness on a bfloat16 base: four ways to make y = W x + s B A x.

    python -m benchmarks.adapters_error --out benchmarks/results/adapters_error.json

* peft: A and B times a float32 copy of x, added to the rounded W x, and the sum rounded.
* fused: one matrix W' = W + s B A a call, rounded to bfloat16, y = W' x; in the backward pass dx = W'^T dy.
* thin: A and B rounded to bfloat16, s B (A x) added to the rounded W x, the sum rounded.
* once: [W, s B] [x, A x], rounded once: what `flowmap_lora` does.

The student of the shipped digits' teacher (`flowmap_digits.TINY_WAN`), adapters of rank 32, trained for `--steps` steps
of stage 1 in float32; then its B, times a factor, on the bfloat16 base. The reference is the same network with the same
bfloat16 numbers in float64. Errors are relative, ‖x - x_ref‖ / ‖x_ref‖: of u; of the central difference of stage 1; of
the gradient of ‖u - target‖², over all adapters. Gain: ⟨Δ, Δ_ref⟩ / ‖Δ_ref‖² of what a layer's adapters change in its
output, over many random inputs: 1 where nothing is lost; the mean over layers.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flowmap_digits import TINY_WAN
from flowmap_lora.linear import LoraLinear, once, plus
from flowmap_wan21 import Lora, Wan21
from torch import Tensor
from torch.nn import functional as F

from flowmap import AdamW, FlowMap, Rng, Stage, TensorData
from flowmap.derivative import CentralDifference
from flowmap.methods import anyflow
from flowmap.training.loop import Trainer

SHAPE, BATCH, RANK = (5, 4, 8, 8), 8, 32
FACTORS = (1e-3, 1e-2, 0.1, 1.0, 10.0)


class Fused(torch.autograd.Function):
    """W' made twice, so that no copy of the network is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x, w, a, b)
        ctx.s = s
        return F.linear(x, (w.to(b.dtype) + s * b @ a).to(w.dtype), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x, w, a, b), s = ctx.saved_tensors, ctx.s
        whole = (w.to(b.dtype) + s * b @ a).to(w.dtype)
        x2, d2 = x.flatten(0, -2), dy.flatten(0, -2)
        da, db = (d2 @ b.to(dy.dtype)).T @ x2, d2.T @ (x2 @ a.to(x.dtype).T)
        return dy @ whole, None, None, (s * da).to(a.dtype), (s * db).to(b.dtype), None


def peft(layer: LoraLinear, x: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
    y = layer.base_layer(x)
    return (y + F.linear(F.linear(x.to(a.dtype), a), b) * s).to(y.dtype)


WAYS: Mapping[str, Callable[..., Tensor]] = {
    "peft": peft,
    "fused": lambda layer, x, a, b, s: Fused.apply(x, layer.weight, layer.bias, a, b, s),
    "thin": lambda layer, x, a, b, s: plus(layer.base_layer(x), x, a, b, s),
    "once": lambda layer, x, a, b, s: once(x, layer.weight, layer.bias, a, b, s),
}


def forward(way: str) -> Callable[[LoraLinear, Tensor], Tensor]:
    def run(layer: LoraLinear, x: Tensor) -> Tensor:
        if (name := layer.sets.name) not in layer.scaling:
            return layer.base_layer(x)
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        return WAYS[way](layer, x, a, b, layer.scaling[name])

    return run


def data() -> TensorData:
    rng = Rng.seeded(0)
    x, text = (rng.noise_like(torch.zeros(64, *shape)) for shape in (SHAPE, (12, 32)))
    return TensorData(x, {"text": text}, {"text": torch.zeros(1, 12, 32)})


def student(dtype: torch.dtype) -> FlowMap:
    spec = Wan21(TINY_WAN, lora=Lora(RANK, float(RANK)), text_length=12, text_tokens=12)
    return spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=dtype)["student"]


def trained(steps: int) -> dict[str, Tensor]:
    """The adapters of a student, in float32."""
    u = student(torch.float32)
    trainer = Trainer(
        {"student": u}, Stage(anyflow.forward(), steps=steps, batch=BATCH, optimizer=AdamW(lr=2e-4)), data()
    )
    for i in range(steps):
        trainer.step(i)
    return {name: p.detach().clone() for name, p in u.trained().items()}


def numbers(u: FlowMap, dtype: torch.dtype) -> dict[str, Tensor]:
    """u, its central difference, and the gradient of ‖u - target‖², all flat."""
    batch, rng = data().batch(range(BATCH)), Rng.seeded(3)
    z, v, target = (rng.noise_like(batch.x).to(dtype) for _ in range(3))
    t = torch.linspace(0.3, 0.95, BATCH)
    cond = {name: value.to(dtype) for name, value in batch.cond.items()}
    out = u(z, t, t / 2, cond)
    for p in u.trained().values():
        p.grad = None
    (out - target).square().mean().backward()
    with torch.no_grad():
        du = CentralDifference()(u, z, t, t / 2, v, cond)
    grad = torch.cat([p.grad.flatten() for p in u.trained().values() if p.grad is not None])
    return {"u": out.detach().double().flatten(), "derivative": du.double().flatten(), "gradient": grad.double()}


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def measure(adapters: Mapping[str, Tensor], factor: float) -> dict[str, Any]:
    net = student(torch.bfloat16)
    with torch.no_grad():
        for name, p in net.trained().items():
            p.copy_(factor * adapters[name] if "lora_B" in name else adapters[name])
    exact = copy.deepcopy(net).double()
    layers = [m for m in net.modules() if isinstance(m, LoraLinear)]
    sizes = [float(m.change("student").norm() / m.weight.float().norm()) for m in layers]
    found: dict[str, Any] = {"factor": factor, "change_over_weight": sum(sizes) / len(sizes), "ways": {}}
    before = LoraLinear.forward
    wanted = numbers(exact, torch.float64)
    narrow = [m for m in layers if m.weight.dtype == torch.bfloat16]
    try:
        for way in WAYS:
            LoraLinear.forward = forward(way)  # type: ignore[method-assign]
            errors = {name: off(value, wanted[name]) for name, value in numbers(net, torch.float32).items()}
            found["ways"][way] = errors | {"gain": sum(gain(layer, way) for layer in narrow) / len(narrow)}
    finally:
        LoraLinear.forward = before  # type: ignore[method-assign]
    return found


@torch.no_grad()
def gain(layer: LoraLinear, way: str) -> float:
    x = Rng.seeded(9).noise_like(torch.zeros(1024, layer.in_features)).to(layer.weight.dtype)
    a, b = layer.pair("student")
    made, none = (WAYS[way](layer, x, a, f * b, layer.scaling["student"]).double() for f in (1.0, 0.0))
    ought = x.double() @ layer.change("student").double().T
    return float((made - none).flatten() @ ought.flatten() / ought.square().sum())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    adapters, found = trained(options.steps), []
    for factor in FACTORS:
        found.append(measure(adapters, factor))
        print(json.dumps(found[-1]), flush=True)
        if options.out is not None:
            options.out.write_text(
                json.dumps({"steps": options.steps, "torch": torch.__version__, "sizes": found}, indent=2) + "\n"
            )


if __name__ == "__main__":
    main()
