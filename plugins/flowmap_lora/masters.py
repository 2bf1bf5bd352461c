"""Networks that are trained whole: weights in float32, and layers that compute in what they were built in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn


def thawed(net: nn.Module) -> None:
    """Make every parameter float32, as a small step would round to nothing in bfloat16, and trainable, in place.

    A layer that held less goes on computing in that: with a copy of its weights that is made for each call, so that
    what is computed is what the frozen network computes, and gradients arrive in float32. So weights, optimiser,
    averages and sums over ranks are float32 on any number of ranks, sharded or not. Where blocks are not recomputed in
    the backward pass, each call that has one holds its copies until then.
    """
    for layer in net.modules():
        less = {name: p.dtype for name, p in layer.named_parameters(recurse=False) if p.dtype != torch.float32}
        if less:
            copies = Copies(tuple(less), min(less.values(), key=lambda dtype: dtype.itemsize))
            layer.register_forward_pre_hook(copies.show)
            layer.register_forward_hook(copies.hide, always_call=True)
    net.float().requires_grad_(True)


def plain(net: nn.Module) -> nn.Module:
    """`net` with its own weights, computing in what they are in: for what reads a network and does not call it."""
    if not any(_of_copies(hook) for layer in net.modules() for hook in layer._forward_pre_hooks.values()):
        return net
    made = copy.deepcopy(net, {id(p): p for p in net.parameters()})
    for layer in made.modules():
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            for key in [key for key, hook in hooks.items() if _of_copies(hook)]:
                del hooks[key]
    return made


@frozen
class Copies:
    """Hooks: while a layer runs, `layer.<name>` is a copy of that parameter in `dtype`, and its input is in it, too.

    The parameter itself stays where optimisers, checkpoints and FSDP look for it.
    """

    names: tuple[str, ...]
    dtype: torch.dtype

    def show(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        for name in self.names:
            p = layer._parameters[name]
            assert p is not None
            vars(layer)[name] = p.to(self.dtype)  # found before nn.Module looks among its parameters
        return tuple(x.to(self.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)

    def hide(self, layer: nn.Module, given: Any, made: Any) -> None:
        for name in self.names:
            vars(layer).pop(name, None)


def _of_copies(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), Copies)
