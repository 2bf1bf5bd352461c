"""What a student loses of its training where its weights are rounded to bfloat16: on disk, or when they are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import asdict, frozen
from torch import Tensor

from .._types import Batch, Cond, Latent, Rng, Role
from ..casting import changed, rounded
from ..model import FlowMap, FlowMapSpec
from ..path import interpolate

TIMES = ((1.0, 0.0), (0.75, 0.25), (0.5, 0.5))
NARROW = torch.bfloat16


@runtime_checkable
class Fuses(Protocol):
    """A `FlowMapSpec` that does not save weights as it trains them, but adds adapters into them."""

    def changes(self, u: FlowMap) -> Iterator[tuple[Tensor, Tensor]]:
        """(W, ΔW) of every weight that was trained and is saved in the type asked for, ΔW in W, float32; one by one."""

    def rounded(self, u: FlowMap, dtype: torch.dtype) -> FlowMap:
        """The network that `save` writes in `dtype`, its weights rounded to that, computing in float32; on the CPU.

        A NotImplementedError where there is none: then the output is not measured.
        """


@frozen
class Rounding:
    """weights: ‖round(W) - W‖ / ‖ΔW‖ of all weights together; least, most: of one of them.
    outputs: ‖u_rounded - u‖ / ‖u - u_before‖ on a sample of the data, where the types that networks compute in are
    not the difference. None is not measured, or nothing changed.
    """

    weights: float | None
    least: float | None
    most: float | None
    outputs: float | None

    def told(self) -> str | None:
        """None where it was not measured."""
        if self.weights is None or self.least is None or self.most is None:
            return None
        outputs = "not measured for the output" if self.outputs is None else f"{_percent(self.outputs)} in the output"
        between = f"{_percent(self.least)} to {_percent(self.most)} of one tensor's"
        return f"{_percent(self.weights)} of what was trained in the weights ({between}), {outputs}"


@frozen(eq=False)
class Probe:
    """A sample of the data, and what the network said of it before it was trained."""

    role: Role
    z: tuple[Latent, ...]
    cond: Cond
    before: tuple[Latent, ...]

    @classmethod
    def of(cls, u: FlowMap, role: Role, sample: Batch) -> Probe:
        """Of several ranks each must ask."""
        rng = Rng.seeded(0)
        x, cond = u.teacher_forcing(sample.x, sample.cond, rng)
        z = tuple(interpolate(x, rng.noise_like(x), torch.full((len(x),), t, device=x.device))[0] for t, _ in TIMES)
        return cls(role, z, cond, cls.said(u, role, z, cond))

    def outputs(self, u: FlowMap) -> tuple[Latent, ...]:
        return self.said(u, self.role, self.z, self.cond)

    @staticmethod
    @torch.no_grad()
    def said(u: FlowMap, role: Role, z: tuple[Latent, ...], cond: Cond) -> tuple[Latent, ...]:
        """On the CPU. A teacher knows the diagonal alone."""
        found = []
        for one, (t, r) in zip(z, TIMES, strict=True):
            at, to = (torch.full((len(one),), s, device=one.device) for s in (t, r if role == "student" else t))
            found.append(u(one, at, to, cond).float().cpu())
        return tuple(found)


@torch.no_grad()
def measure(spec: FlowMapSpec, u: FlowMap, probe: Probe, *, outputs: bool = True) -> Rounding:
    """Of `u`, a trained network of `spec` that is whole; where its spec fuses, one in float32 takes its place on the
    device for a while. outputs: False does not ask that network, for which there may be no room."""
    lost, moved = [], []
    for weight, change in spec.changes(u) if isinstance(spec, Fuses) else since_built(spec, u, probe.role):
        lost.append(float((weight.to(NARROW).double() - weight.double()).square().sum()))
        moved.append(float(change.double().square().sum()))
    shares = [(a / b) ** 0.5 for a, b in zip(lost, moved, strict=True) if b]
    if not shares or not math.isfinite(sum(shares)):
        return Rounding(None, None, None, None)
    off = None
    if outputs:
        with suppress(torch.OutOfMemoryError, NotImplementedError):
            off = _ratio(_outputs(spec, u, probe, torch.float32), _outputs(spec, u, probe, NARROW), probe.before)
    return Rounding((sum(lost) / sum(moved)) ** 0.5, min(shares), max(shares), off)


def facts(saved: str, lost: Rounding | None) -> dict[str, Any]:
    """For the file beside the weights: the type that they are in, and what bfloat16 loses."""
    return {"dtype": saved, "bfloat16": None if lost is None else asdict(lost)}


def sentence(known: dict[str, Any], where: str, apart: bool) -> str:
    """Of `facts`. apart: the adapters are there, too."""
    lost = None if known["bfloat16"] is None else Rounding(**known["bfloat16"]).told()
    if lost is None:
        return f"{where} is in {known['dtype']}; what bfloat16 loses of the training was not measured"
    keeps = "; the base with its adapters, not fused, loses none of it" if apart else ""
    if known["dtype"] == "bfloat16":
        return f"{where} was saved in bfloat16; this rounding lost {lost}{keeps}"
    return f"{where} was saved in {known['dtype']}, exactly; loaded in bfloat16 it would lose {lost}{keeps}"


def since_built(spec: FlowMapSpec, u: FlowMap, role: Role) -> Iterator[tuple[Tensor, Tensor]]:
    """(W, ΔW) of every weight that is trained, beside the network that training began with."""
    before = spec.build(frozenset[Role]({role}), device=torch.device("cpu"), dtype=torch.float32)[role]
    if role == "teacher":
        before.thaw()
    began = before.trained()
    for name, p in u.trained().items():
        weight = p.detach().float().cpu()
        yield weight, weight - began[name].detach().float()


def _outputs(spec: FlowMapSpec, u: FlowMap, probe: Probe, dtype: torch.dtype) -> tuple[Latent, ...]:
    """With weights in `dtype`."""
    if isinstance(spec, Fuses):
        device, made = probe.z[0].device, spec.rounded(u, dtype)
        u.to("cpu")
        try:
            return probe.outputs(made.to(device))
        finally:
            u.to(device)
    with changed(u, rounded(dtype)):
        return probe.outputs(u)


def _ratio(after: tuple[Latent, ...], other: tuple[Latent, ...], before: tuple[Latent, ...]) -> float | None:
    off = sum(float((a - b).double().square().sum()) for a, b in zip(other, after, strict=True))
    moved = sum(float((a - b).double().square().sum()) for a, b in zip(after, before, strict=True))
    ratio = (off / moved) ** 0.5 if moved else math.nan
    return ratio if math.isfinite(ratio) else None


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
