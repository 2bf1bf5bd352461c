"""Frozen weights of blocks, and what backward passes need, in the host's memory. Nothing that is computed changes.

"weights": a block's frozen weights are on the device while it runs, forward or again in the backward pass, and those of
the block that comes next are on their way: on CUDA from pinned memory, by a stream of their own. The parameters stay in
the host's memory: while a block runs its layers have copies in their place. What is trained stays on the device.

"inputs": what a call keeps for its backward pass, of recomputed blocks their inputs, goes to the host's memory as it is
kept, on CUDA by a stream of its own, and comes back when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..._types import Role
from ...adamw8bit import AdamW8bit
from ...model import FlowMap
from ...muon import Muon
from ...recipe import Recipe
from ...recomputing import Offload

LEAST = 1 << 20
"""Bytes below which a tensor is not worth the way."""
Place = tuple[nn.Module, str]


def stays(recipe: Recipe, processes: int, compiled: bool = False) -> list[str]:
    """Why nothing is offloaded, of networks that so many processes have in pieces or whose blocks are compiled, and why
    an optimiser does not step those in pieces."""
    return [*_offloads(recipe.offload, processes, compiled), *_whole(recipe, processes)]


def _whole(recipe: Recipe, processes: int) -> list[str]:
    if processes == 1:
        return []
    used = {type(s.optimizer_of(role)) for s in recipe.stages for role in s.method.trains}
    network = f"of a network in pieces on {processes} processes"
    why = {
        AdamW8bit: f"AdamW8bit: {network} the moments are divided already",
        Muon: f"Muon: a step of a matrix is made of all of it, and {network} each has a part",
    }
    return [
        f"{said}: take AdamW, or Distribution(shard=False), a copy on each"
        for kind, said in why.items()
        if kind in used
    ]


def _offloads(what: Offload | None, processes: int, compiled: bool) -> list[str]:
    if what is not None and compiled:
        return [f"Recipe.offload = {what!r} with Kernels(compile=True): was not tried together; leave out one of them"]
    if what is None or processes == 1:
        return []
    where = f"Recipe.offload = {what!r}: a network in pieces on {processes} processes stays on their GPUs"
    return [f"{where}: leave it out, or take one process (--gpus 1), or Distribution(shard=False), a copy on each"]


def offload(nets: Mapping[Role, FlowMap], what: Offload, device: torch.device) -> None:
    """Move `nets`, which are whole, to `device` but for `what`."""
    blocks = _unique(block for u in nets.values() for block in u.blocks)
    weights = None if what == "inputs" else Weights(device, blocks)
    inputs = None if what == "weights" else Inputs(device)
    for part in _unique(part for u in nets.values() for part in u.modules()):
        _move(part, device, set() if weights is None else weights.host)
    if weights is not None:
        for block in blocks:
            block.register_forward_pre_hook(weights.show)
            block.register_forward_hook(weights.hide, always_call=True)
    for u in nets.values():
        if inputs is not None:
            u.register_forward_pre_hook(inputs.begin)
            u.register_forward_hook(inputs.end, always_call=True)
        vars(u)["_offload"] = [way for way in (weights, inputs) if way is not None]


def ways(nets: Mapping[Role, FlowMap]) -> list[Weights | Inputs]:
    """What `offload` made for `nets`, each once."""
    return _unique(way for u in nets.values() for way in vars(u).get("_offload", ()))


@define(eq=False)
class Weights:
    """moved: bytes that were fetched. host: ids of the parameters that stay there."""

    device: torch.device
    blocks: Sequence[nn.Module]
    moved: int = 0
    host: set[int] = field(init=False)
    keeping: Callable[[], AbstractContextManager[object]] = nullcontext
    _places: dict[int, list[Place]] = field(init=False)
    _coming: dict[int, tuple[list[Tensor], Any]] = field(factory=dict, init=False)
    _last: int | None = field(default=None, init=False)
    _stream: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._places = {id(block): _frozen(block) for block in self.blocks}
        self.host = {id(layer._parameters[name]) for places in self._places.values() for layer, name in places}
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)

    def show(self, block: nn.Module, given: Any) -> None:
        i = next(i for i, one in enumerate(self.blocks) if one is block)
        copies, ready = self._coming.pop(i) if i in self._coming else self._fetch(i)
        if ready is not None:
            ready.wait(torch.cuda.current_stream(self.device))
        for (layer, name), copy in zip(self._places[id(block)], copies, strict=True):
            if ready is not None:
                copy.record_stream(torch.cuda.current_stream(self.device))
            vars(layer)[name] = copy  # found before nn.Module looks among its parameters
        forward = self._last is None or i > self._last or i == 0
        following, self._last = i + 1 if forward else i - 1, i
        self._coming = {k: v for k, v in self._coming.items() if k == following}
        if 0 <= following < len(self.blocks) and following not in self._coming:
            self._coming[following] = self._fetch(following)

    def hide(self, block: nn.Module, given: Any, made: Any) -> None:
        for layer, name in self._places[id(block)]:
            vars(layer).pop(name, None)

    def _fetch(self, i: int) -> tuple[list[Tensor], Any]:
        """A block's weights, and what to wait for before they are used."""
        held = [layer._parameters[name].detach() for layer, name in self._places[id(self.blocks[i])]]  # type: ignore[union-attr]
        self.moved += sum(t.nbytes for t in held)
        if self._stream is None:
            return [t.to(self.device, copy=True) for t in held], None
        with torch.cuda.stream(self._stream):
            copies = [t.to(self.device, non_blocking=True) for t in held]
            return copies, self._stream.record_event()


@define(eq=False)
class Inputs:
    """moved: bytes that came back."""

    device: torch.device
    moved: int = 0
    keeping: Callable[[], AbstractContextManager[object]] = nullcontext
    _open: list[saved_tensors_hooks | None] = field(factory=list, init=False)
    _stream: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)

    def begin(self, u: nn.Module, given: Any) -> None:
        self._open.append(saved_tensors_hooks(self.pack, self.unpack) if torch.is_grad_enabled() else None)
        if (hooks := self._open[-1]) is not None:
            hooks.__enter__()

    def end(self, u: nn.Module, given: Any, made: Any) -> None:
        if self._open and (hooks := self._open.pop()) is not None:
            hooks.__exit__()

    def pack(self, t: Tensor) -> tuple[Tensor, bool]:
        if isinstance(t, nn.Parameter) or t.nbytes < LEAST or t.device.type != self.device.type:
            return t, False
        with self.keeping():
            if self._stream is None:
                return t.detach().clone(), True
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                host = torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True)
                host.copy_(t.detach(), non_blocking=True)
                t.record_stream(self._stream)
            return host, True

    def unpack(self, packed: tuple[Tensor, bool]) -> Tensor:
        t, away = packed
        if not away:
            return t
        self.moved += t.nbytes
        if self._stream is None:
            return t.clone()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return t.to(self.device, non_blocking=True)


def _frozen(block: nn.Module) -> list[Place]:
    """Where the parameters are that nobody trains."""
    found = ((layer, name, p) for layer in block.modules() for name, p in layer._parameters.items())
    return [(layer, name) for layer, name, p in found if p is not None and not p.requires_grad]


@torch.no_grad()
def _move(part: nn.Module, device: torch.device, host: set[int]) -> None:
    """Parameters, buffers, and tables that are neither."""
    for p in part._parameters.values():
        if p is not None and id(p) not in host:
            p.data = p.data.to(device)
        elif p is not None and device.type == "cuda":
            p.data = p.data.pin_memory()
    for tensors in (part._buffers, vars(part)):
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                tensors[name] = value.to(device)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list({id(value): value for value in values}.values())
