r"""r frozen into a schedule: the time embedders of a student out of those of the plain class.

A student embeds its two times as e(t, r) = (1 - γ) E(t) + γ E'(r), AnyFlow, arXiv:2605.13724; everything after that is
the plain class. On a schedule t_0 > t_1 > ... > t_N = 0 the second time is t_{i+1} whenever the first is t_i, so each
embedder says N vectors e_i = e(t_i, t_{i+1}). The plain one ends with a linear layer, E(t_i) = W h_i + b, and the
change of W alone that makes it say e_i there is the least solution of N linear equations,

    ΔW h_i = d_i = e_i - E(t_i),     ΔW = D^T U S^-1 V^T,     H = U S V^T,     rows h_i of H and d_i of D,

of rank N at most. It is exact at the t_i and says something else in between: another number of steps is another file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from flowmap.export.errors import ExportError
from flowmap.time_embedding import mix

from .build import hollow
from .network import DiffusersFlowMap

LIMIT = 1e-5
"""Of the relative error of an embedding, in float32."""
SMALLEST = 2.0**-20
"""Directions of H that are weaker than this beside its strongest are rounding."""


def least(h: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """a [k, in], b [out, k], float32: ΔW = b a, the least that takes the rows of h [N, in] to those of d [N, out]."""
    u, s, vh = torch.linalg.svd(h, full_matrices=False)
    k = int((s > SMALLEST * s[0]).sum())
    return vh[:k].float(), (d.T @ u[:, :k] / s[:k]).float()


@frozen(eq=False)
class Change:
    """b a is what the weight of `layer` changes by. error: the largest of an embedding, relative, in float32."""

    layer: str
    a: Tensor
    b: Tensor
    error: float


@torch.no_grad()
def changes(u: DiffusersFlowMap, plain: Any, times: Sequence[float]) -> list[Change]:
    """One for every embedder of the time: with them the network `plain` says at t_i what `u`, alone, does of t_i and
    t_{i+1}, and of a first frame that is held, at 0. times: t_0 > ... > t_N = 0."""
    pairs = [*pairwise(times), *([(0.0, 0.0)] if u.row.held is not None else [])]
    t, r = torch.tensor(pairs, dtype=torch.float64).float().unbind(1)
    now, then = u.units(t), u.units(r)
    return [_change(path, u.net.get_submodule(path), plain.get_submodule(path), now, then) for path in u.row.times]


def _change(path: str, lifted: Any, plain: nn.Module, now: Tensor, then: Tensor) -> Change:
    """now, then: t_i and t_{i+1} in the units of the network, [N]."""
    own, other, base = (copy.deepcopy(e).float() for e in (lifted.now, lifted.then, plain))
    if (features := lifted.hand.features) is not None:  # an embedder that makes its own does so in float32
        own, other, base = own.double(), other.double(), base.double()
        now, then = features(now).double(), features(then).double()
    e = mix(own(now), other(then), lifted.gamma).double()
    last, h, said = _last(path, base, now)
    a, b = least(h.double(), e - said.double())
    layer: Any = base.get_submodule(last)
    weight = layer.weight.float() + b @ a
    made = nn.functional.linear(h.float(), weight, None if layer.bias is None else layer.bias.float())
    error = float((made - e).abs().max() / e.abs().max())
    if not error <= LIMIT:
        raise ExportError(
            f"steps = {len(now)}: {path} of the base does not tell so many times apart (an embedding would be off by "
            f"{error:.1e}, at most {LIMIT:.0e} is allowed): ask for fewer"
        )
    return Change(f"{path}.{last}".rstrip("."), a, b, error)


def _last(path: str, embedder: nn.Module, x: Tensor) -> tuple[str, Tensor, Tensor]:
    """(the linear layer that the embedder ends with, what that is given of x, what the embedder says)."""
    heard: list[tuple[str, Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda m, given, made, name=name: heard.append((name, given[0], made)))
        for name, layer in embedder.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    said: Tensor = embedder(x)
    for hook in hooks:
        hook.remove()
    if not heard or heard[-1][2].shape != said.shape or not torch.equal(heard[-1][2], said):
        raise ExportError(f"{path} does not end with a linear layer, so r cannot be frozen into it: keep both times")
    name, h, _ = heard[-1]
    return name, h.flatten(0, -2), said.flatten(0, -2)


def of_now(tensors: Mapping[str, Tensor], paths: Sequence[str]) -> dict[str, Tensor]:
    """Those of a student under the names of the plain class, with the embedders of t."""
    found = {}
    for name, value in tensors.items():
        path = next((p for p in paths if name.startswith(f"{p}.")), None)
        if path is None:
            found[name] = value
        elif name.startswith(f"{path}.now."):
            found[f"{path}.{name.removeprefix(f'{path}.now.')}"] = value
    return found


def plain_class(u: DiffusersFlowMap, tensors: Mapping[str, Tensor]) -> Any:
    """The network of diffusers' own class with these tensors."""
    net = hollow(u.row, {key: value for key, value in u.net.config.items() if not key.startswith("_")}, u.computes)
    net.load_state_dict(dict(tensors), assign=True)
    return net.requires_grad_(False)
