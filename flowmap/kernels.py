"""With which programs a machine computes what a recipe says: of the same numbers, but for rounding."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from attrs import field, frozen

from . import validators

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .model import FlowMap

Float32: TypeAlias = Literal["ieee", "tf32"]
Attention: TypeAlias = Literal["torch", "fastest", "fa4", "fa3", "cudnn", "fa2"]

PACKAGES: Mapping[str, tuple[str, int]] = {"fa4": ("flash_attn.cute.interface", 9), "fa3": ("flash_attn_interface", 9)}
"""Of kernels that torch takes from elsewhere: the module, and the least major capability of a GPU."""

FULL = ("ieee", "none")
"""Of torch's `fp32_precision`: no TF32 in products."""
BACKEND = "inductor"
VARIANTS = 64
"""Of one block, that may be compiled: a call with another role's adapters, with or without a graph, of another size."""


@frozen
class Kernels:
    """compile: the repeated blocks of every network, by torch.compile, while it trains.

    float32: products of float32 on a GPU, "ieee" in full, or "tf32", 10 bits of mantissa, which is faster; times
    are embedded in full in any case, as a finite difference divides by what they differ by.

    attention: "torch", whatever torch takes; "fastest", the first that is there of FlashAttention 4 and 3, cuDNN and
    FlashAttention 2; or one of them. What a kernel does not take, such as float32 or a mask, goes to the next one that
    does. A CPU has one kernel.

    A checkpoint does not know of it: a run goes on with others.
    """

    compile: bool = field(default=False, validator=validators.instance_of(bool))
    float32: Float32 = field(default="ieee", validator=validators.in_(get_args(Float32)))
    attention: Attention = field(default="torch", validator=validators.in_(get_args(Attention)))

    def check(self, device: torch.device) -> None:
        """A ValueError for what this machine has not."""
        if self.compile and device.type == "cpu" and compiler() is None:
            raise ValueError(
                "Kernels.compile = True: on a CPU it needs a C++ compiler: install g++, or name one in CXX"
            )
        if device.type == "cuda" and (lacks := _lacks(self.attention, device)) is not None:
            raise ValueError(f"Kernels.attention = {self.attention!r}: {lacks}")

    @contextmanager
    def running(
        self, nets: Mapping[Any, FlowMap], device: torch.device, say: Callable[[str], object]
    ) -> Iterator[None]:
        """Meanwhile `nets` compute so. say: told how, in sentences."""
        with ExitStack() as stack:
            say(stack.enter_context(_products(self.float32, device)))
            say(stack.enter_context(_attention(self.attention, device)))
            if self.compile:
                say(stack.enter_context(_compiled(nets)))
            yield


def compiler() -> str | None:
    """Of C++: where it is."""
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")


def in_full(device: torch.device) -> bool:
    """Whether products of float32 on a device keep all that float32 has, so no TF32; code being compiled cannot ask."""
    import torch

    return device.type != "cuda" or (not torch.compiler.is_compiling() and _matmul() in ("highest", *FULL))


def exact() -> AbstractContextManager[None]:
    """Meanwhile products of float32 are in full, whatever `Kernels.float32` says."""
    import torch

    if torch.compiler.is_compiling():
        return nullcontext()
    return nullcontext() if _matmul() in ("highest", *FULL) else _in_full()


@contextmanager
def _in_full() -> Iterator[None]:
    import torch

    before = _matmul()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        _put_back(before)


def _matmul() -> str:
    """How products of float32 are made, in the words in which it was set: torch's older name raises for the newer."""
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return str(torch.backends.cuda.matmul.fp32_precision)


def _put_back(matmul: str) -> None:
    import torch

    if matmul in ("tf32", *FULL):
        torch.backends.cuda.matmul.fp32_precision = matmul
    else:
        torch.set_float32_matmul_precision(matmul)


def _convolutions() -> bool | str:
    import torch

    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return str(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


@contextmanager
def _products(kind: Float32, device: torch.device) -> Iterator[str]:
    """By the setters that torch's own compiler reads: it raises where `fp32_precision` of one operator was set."""
    import torch

    before, convolutions = _matmul(), _convolutions()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = kind == "tf32"  # torch's own default is True
    try:
        if device.type != "cuda":
            yield f"products of float32 are in full: there is no TF32 on this {_named(device)}"
        elif kind == "tf32":
            yield "products of float32 are in TF32, but those that embed times"
        else:
            yield 'products of float32 are in full; Kernels(float32="tf32"), --tf32, is faster'
    finally:
        _put_back(before)
        if isinstance(convolutions, bool):
            torch.backends.cudnn.allow_tf32 = convolutions
        else:
            torch.backends.cudnn.conv.fp32_precision = convolutions  # type: ignore[attr-defined]


@contextmanager
def _attention(kind: Attention, device: torch.device) -> Iterator[str]:
    if device.type != "cuda":
        yield f"attention is torch's: a {_named(device)} has one kernel"
        return
    there = [name for name in get_args(Attention)[2:] if _lacks(name, device) is None]
    if kind == "torch":
        yield f"attention is what torch takes; there are {', '.join(there)}, see Kernels.attention"
        return
    from torch.nn import attention

    first = there[0] if kind == "fastest" else kind
    order = [attention.SDPBackend.CUDNN_ATTENTION, attention.SDPBackend.FLASH_ATTENTION]
    order = order if first == "cudnn" else order[::-1]
    order += [attention.SDPBackend.EFFICIENT_ATTENTION, attention.SDPBackend.MATH]
    if first in PACKAGES:
        attention.activate_flash_attention_impl(first.upper())
    try:
        with attention.sdpa_kernel(order, set_priority=True):
            yield f"attention is {first}, then {', '.join(b.name.lower() for b in order)}, by what each takes"
    finally:
        if first in PACKAGES:
            attention.restore_flash_attention_impl()


def _lacks(kind: str, device: torch.device) -> str | None:
    """Why there is no such kernel here."""
    import torch

    if kind in PACKAGES:
        module, least = PACKAGES[kind]
        if torch.cuda.get_device_capability(device)[0] < least:
            return f"needs a GPU of compute capability {least}.0"
        if not _found(module):
            return f"the package of {module} is not installed"
    if kind == "cudnn" and not torch.backends.cudnn.is_available():
        return "this torch has no cuDNN"
    return None


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def _compiled(nets: Mapping[Any, FlowMap]) -> Iterator[str]:
    """Each block's `forward`, inside of what others hang on a block: sharding, recomputation."""
    import torch
    from torch import _dynamo

    blocks: list[nn.Module] = list({id(block): block for u in nets.values() for block in u.blocks}.values())
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=BACKEND)
    try:
        with _dynamo.config.patch(recompile_limit=VARIANTS):
            yield _told(blocks)
    finally:
        for block in blocks:
            del block.forward


def _told(blocks: list[nn.Module]) -> str:
    kinds = len({type(block) for block in blocks})
    if not blocks:
        return "nothing is compiled: these networks name no blocks"
    return (
        f"{len(blocks)} blocks of {kinds} kind{'s' if kinds > 1 else ''} are compiled: the first iteration of a stage "
        "stands still meanwhile, for a minute or several, and so does the first with samples of another size"
    )


def _named(device: torch.device) -> str:
    return device.type.upper()
