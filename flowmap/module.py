"""Your own network as a backbone: any `nn.Module` that maps (z, t, conditions) to a velocity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Literal, Self, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor, nn

from . import validators
from ._types import Cache, Cond, Latent, Role, Time
from .clock import Clock, Features
from .model import About, FlowMap, FlowMapSpec, sha256
from .path import Convention
from .time_embedding import Delta, check_submodule, keep_exact, lift, pair

DTYPES = (torch.float32, torch.bfloat16)
Times: TypeAlias = Literal["one", "pair", "two", "clock"]
"""net(z, t), net(z, (t, r) as one tensor), net(z, t, r), net(z, t) while a clock says both."""


def _wide(value: Tensor, z: Latent) -> Tensor:
    """What is stored in half precision comes to the module as z does: that it computes in half, only autocast says."""
    return value.to(z.dtype) if value.dtype in (torch.bfloat16, torch.float16) else value


class ModuleFlowMap(FlowMap):
    """u(z, t, r) of `net`, called with the entries of the condition as keyword arguments.

    clock: that its embedders read, if they do. dtype: of the forward pass, through autocast. What is trained stays
    float32, and so do the times.
    """

    def __init__(
        self, net: nn.Module, times: Times, dtype: torch.dtype, convention: Convention, delta: Delta, clock: Clock
    ) -> None:
        super().__init__()
        self.net, self.times, self.dtype = net, times, dtype
        self.convention, self.delta, self.clock, self.worked = convention, delta, clock, False

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        now, then = self.convention.time(t), self.convention.time(r)
        if self.times == "clock":
            told = self.clock.at(now, then if self.delta == "r" else now - then)
        else:
            told = self.clock.at(now)
        half = self.dtype != torch.float32
        with torch.autocast(z.device.type, self.dtype) if half else nullcontext(), told as own:
            given = {"pair": (pair(now, then),), "two": (now, then)}.get(self.times, (own,))
            u = self._called(z, *given, **{name: _wide(value, z) for name, value in cond.items()})
        return self.convention.velocity(u.to(z.dtype))

    @property
    def precision(self) -> torch.dtype:
        return self.dtype

    def thaw(self) -> None:
        self.float().requires_grad_(True)

    def _called(self, z: Latent, *times: Time, **cond: Tensor) -> Tensor:
        if self.worked or torch.compiler.is_compiling():
            return _velocity(self.net(z, *times, **cond))
        try:
            u = _velocity(self.net(z, *times, **cond))
        except (TypeError, IndexError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                raise
            shapes = [f"z {list(z.shape)}", *(f"a time {list(t.shape)}" for t in times)]
            shapes += [f"{name} {list(value.shape)}" for name, value in cond.items()]
            hint = _PAIRED if self.times == "pair" else ""
            raise ValueError(
                f"{type(self.net).__name__} cannot be called with {', '.join(shapes)}: {type(error).__name__}: "
                f"{str(error).splitlines()[0]}{hint}"
            ) from error
        if u.shape != z.shape:
            raise ValueError(f"{type(self.net).__name__} gave {list(u.shape)}: must be {list(z.shape)}, as z is")
        self.worked = True
        return u


_PAIRED = (
    "; its time has a second column, r: where the network does more with it than to hand it on to the embedder, say "
    "what the embedder is given, ModuleSpec(features=...), and it gets one time"
)


def _velocity(made: Any) -> Tensor:
    """The tensor in what a network gives out: itself, the first of a tuple, or `.sample`."""
    if isinstance(made, tuple | list) and made:
        made = made[0]
    if not isinstance(made, Tensor):
        made = getattr(made, "sample", made)
    if not isinstance(made, Tensor):
        raise TypeError(f"it gives a {type(made).__name__}: must be a tensor, a tuple that begins with one, or .sample")
    return made


def _made(module: nn.Module | Callable[[], nn.Module]) -> str:
    return type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__qualname__", "a factory")


@frozen(eq=False)
class ModuleSpec(FlowMapSpec):
    """A network of your own that predicts the velocity of z_t = (1 - t) x + t ε, t = 1 noise, t in [0, 1].

        ModuleSpec(net, time="embed")

    module: the network, or a function without arguments that makes it, called once. Nothing is done to it: student,
        teacher and critic are copies, in eval mode, every parameter of student and critic trained.
    time: the path of the submodule that embeds the time, which gets its second time by `flowmap.time_embedding.lift`,
        or the paths of several. None for a network that has two times, `net(z, t, r, **cond)`; it must not round them
        where it runs in bfloat16.
    features: what that submodule is given of times [N], where it is not the time itself: the path of the submodule that
        makes them, or a function. One that makes sinusoids, directly before the embedder, is found. Without,
        `net(z, t, **cond)` must hand t on as it came or changed elementwise; t[:, None] will do.
    convention: what the network calls time and velocity, where it is not t and ε - x: a factor, 1 - t, x - ε.
    z, cond, uncond: a few samples, and one row of what guidance replaces their conditions with, for the conformance kit
        and exporters; training needs none.
    """

    module: nn.Module | Callable[[], nn.Module] = field(repr=_made)
    time: str | tuple[str, ...] | None = field()
    gamma: float = field(default=0.25, validator=[validators.gt(0.0), validators.lt(1.0)], kw_only=True)
    delta: Delta = field(default="r", validator=validators.in_(("r", "t-r")), kw_only=True)
    features: str | Features | None = field(default=None, kw_only=True)
    convention: Convention = field(default=Convention(), kw_only=True)
    z: Latent | None = field(default=None, repr=False, kw_only=True)
    cond: Cond = field(factory=dict, repr=False, kw_only=True)
    uncond: Cond = field(factory=dict, repr=False, kw_only=True)

    @module.validator
    def _callable(self, attribute: Any, module: object) -> None:
        if not callable(module):
            kind = type(module).__name__
            raise TypeError(f"ModuleSpec.module is a {kind}: must be an nn.Module, or a function that makes one")

    @time.validator
    def _paths(self, attribute: Any, time: object) -> None:
        paths = time if isinstance(time, tuple) else () if time is None else (time,)
        if time == () or not all(isinstance(path, str) for path in paths):
            raise TypeError(f"ModuleSpec.time = {time!r}: must be a submodule's path, a tuple of them, or None")

    def __attrs_post_init__(self) -> None:
        if self.delta == "t-r" and self.convention.clock == "1-t":
            raise ValueError("ModuleSpec.delta = 't-r': must be 'r' where the network's clock is 1 - t")
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

    def about(self) -> About:
        return About(_made(self.module))

    def fingerprint(self) -> str:
        return f"{type(self.network).__module__}.{type(self.network).__qualname__} {sha256(self.network.state_dict())}"

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the embedders."""
        return (self.time,) if isinstance(self.time, str) else self.time or ()

    def _role(self, role: Role, dtype: torch.dtype) -> FlowMap:
        net, clock = copy.deepcopy(self.network).eval().float().requires_grad_(role != "teacher"), Clock()
        given = {path: self.features or _features_before(net, path) for path in self.paths}
        read = clock if any(given.values()) else None  # by all, as the network is given one time then
        times: Times = "two" if self.time is None else "one"
        for path, features in given.items():
            if role == "student":
                times = "pair" if read is None else "clock"
                lift(net, path, self.gamma, self.delta, clock=read, features=features)
            elif read is not None or dtype != torch.float32:
                keep_exact(net, path, clock=read, features=features)
        return ModuleFlowMap(net, times, dtype, self.convention, self.delta, clock)

    def _check(self, network: nn.Module) -> None:
        for path in (*self.paths, *([self.features] if isinstance(self.features, str) else [])):
            check_submodule(network, path)


def _features_before(network: nn.Module, path: str) -> nn.Module | None:
    """The module directly before the embedder at `path`, if that makes of times what the embedder takes."""
    parent, _, name = path.rpartition(".")
    children = dict(network.get_submodule(parent).named_children())
    embedder, earlier = children[name], [*children.values()][: [*children].index(name)]
    first = next((layer for layer in embedder.modules() if isinstance(layer, nn.Linear)), None)
    if not earlier or first is None:
        return None
    times = torch.tensor([0.5, 1.0], device=first.weight.device)
    if _shape(embedder, times) is not None:  # it takes times
        return None
    return earlier[-1] if _shape(earlier[-1], times) == (2, first.in_features) else None


@torch.no_grad()
def _shape(module: nn.Module, times: Time) -> tuple[int, ...] | None:
    """Of what it makes of times; None where it cannot, for whatever reason a module of somebody's has."""
    try:
        made = module(times)
    except Exception:
        return None
    return tuple(made.shape) if isinstance(made, Tensor) else None
