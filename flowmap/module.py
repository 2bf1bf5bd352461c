"""Your own network as a backbone: any `nn.Module` that maps (z, t, conditions) to a velocity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Literal, Self, TypeAlias

import torch
from attrs import field, frozen
from torch import nn

from . import validators
from ._types import Cache, Cond, Latent, Role, Time
from .model import FlowMap, FlowMapSpec, sha256
from .time_embedding import Delta, check_submodule, keep_exact, lift, pair

DTYPES = (torch.float32, torch.bfloat16)
Times: TypeAlias = Literal["one", "pair", "two"]  # net(z, t), net(z, (t, r) as one tensor), net(z, t, r)


class ModuleFlowMap(FlowMap):
    """u(z, t, r) of `net`, called with the entries of the condition as keyword arguments.

    dtype: of the forward pass, through autocast. What is trained stays float32, and so do the times.
    """

    def __init__(self, net: nn.Module, times: Times, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.times, self.dtype = net, times, dtype

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        times = {"one": (t,), "pair": (pair(t, r),), "two": (t, r)}[self.times]
        half = self.dtype != torch.float32
        with torch.autocast(z.device.type, self.dtype) if half else nullcontext():
            u: Latent = self.net(z, *times, **cond)
        return u.to(z.dtype)

    def thaw(self) -> None:
        self.float().requires_grad_(True)


def _made(module: nn.Module | Callable[[], nn.Module]) -> str:
    return type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__qualname__", "a factory")


@frozen(eq=False)
class ModuleSpec(FlowMapSpec):
    """A network of your own that predicts the velocity ε - x of z_t = (1 - t) x + t ε, t = 1 noise, t in [0, 1].

        ModuleSpec(net, time="embed")

    module: the network, or a function without arguments that makes it, called once. Nothing is done to it: student,
        teacher and critic are copies, in eval mode, every parameter of student and critic trained.
    time: the path of the submodule that embeds the time, which gets its second time by `flowmap.time_embedding.lift`:
        `net(z, t, **cond)` must hand t on to it as it came or changed elementwise; t[:, None] will do. None for a
        network that has two times, `net(z, t, r, **cond)`; it must not round them where it runs in bfloat16.
    z, cond, uncond: a few samples, and one row of what guidance replaces their conditions with, for the conformance kit
        and exporters; training needs none.
    """

    module: nn.Module | Callable[[], nn.Module] = field(repr=_made)
    time: str | None = field(validator=validators.optional(validators.instance_of(str)))
    gamma: float = field(default=0.25, validator=[validators.gt(0.0), validators.lt(1.0)], kw_only=True)
    delta: Delta = field(default="r", validator=validators.in_(("r", "t-r")), kw_only=True)
    z: Latent | None = field(default=None, repr=False, kw_only=True)
    cond: Cond = field(factory=dict, repr=False, kw_only=True)
    uncond: Cond = field(factory=dict, repr=False, kw_only=True)

    @module.validator
    def _callable(self, attribute: Any, module: object) -> None:
        if not callable(module):
            kind = type(module).__name__
            raise TypeError(f"ModuleSpec.module is a {kind}: must be an nn.Module, or a function that makes one")

    def __attrs_post_init__(self) -> None:
        if isinstance(self.module, nn.Module):
            self._check(self.module)

    @cached_property
    def network(self) -> nn.Module:
        """The network itself; the roles get copies of it."""
        if isinstance(self.module, nn.Module):
            return self.module
        made = self.module()
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"ModuleSpec.module = {_made(self.module)} made a {type(made).__name__}: must be an nn.Module"
            )
        self._check(made)
        return made

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        if dtype not in DTYPES:
            raise ValueError(f"dtype = {dtype}: must be one of {', '.join(map(str, DTYPES))}")
        return {role: self._role(role, dtype).to(device) for role in sorted(roles)}

    def tiny(self) -> Self:
        return self

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        if self.z is None:
            raise ValueError(
                "ModuleSpec.z = None: give a few latents, and their `cond` where there is one, as an example"
            )
        rows = torch.arange(batch) % len(self.z)
        return self.z[rows], {name: value[rows] for name, value in self.cond.items()}

    def null(self, cond: Cond) -> Cond:
        return self.uncond or super().null(cond)

    def fingerprint(self) -> str:
        return f"{type(self.network).__module__}.{type(self.network).__qualname__} {sha256(self.network.state_dict())}"

    def _role(self, role: Role, dtype: torch.dtype) -> FlowMap:
        net = copy.deepcopy(self.network).eval().float().requires_grad_(role != "teacher")
        if self.time is None:
            return ModuleFlowMap(net, "two", dtype)
        if role != "student":
            return ModuleFlowMap(net if dtype == torch.float32 else keep_exact(net, self.time), "one", dtype)
        return ModuleFlowMap(lift(net, self.time, self.gamma, self.delta), "pair", dtype)

    def _check(self, network: nn.Module) -> None:
        if self.time is not None:
            check_submodule(network, self.time)
