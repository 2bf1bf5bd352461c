"""Tensors that others published of Wan's network, under the names of diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowmap.model import WeightsError
from flowmap.published.weights import Weights

from .names import original
from .sizes import LATENT, T2V_1_3B, T2V_14B

SHOWN = 5
TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of weights that are read; what has 8 bits or fewer needs scales, which are no part of the network."""


def fitted(found: Weights, config: Mapping[str, Any], base: str, *, experts: bool = False) -> list[dict[str, Tensor]]:
    """The tensors of `found` by the names of diffusers' `WanTransformer3DModel`, as large as `config` says.

    They may be called as there, or as in Wan's own files. experts: of two networks, which must then be there; else of
    one. A `WeightsError` that names what is missing, what does not belong there, and what is of another shape or of no
    floating-point type.
    """
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        own = WanTransformer3DModel(**config).state_dict()
    if bool(found.second) != experts:
        has, wanted = ("two networks", "one") if found.second else ("one network", "two experts")
        raise WeightsError(f"{found.file} has {has}: must have {wanted} in this layout")
    return [
        _fitted(tensors, own, f"{found.file} is not the network of {base}")
        for tensors in (found.tensors, found.second)
        if tensors
    ]


def _fitted(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], told: str) -> dict[str, Tensor]:
    plain = any(name.startswith("condition_embedder.") for name in theirs)
    names = {name: name if plain else original(name) for name in own}
    if wrong := "; ".join(_wrong(theirs, {names[name]: value for name, value in own.items()})):
        raise WeightsError(f"{told}: {wrong}")
    return {name: theirs[there].detach().contiguous() for name, there in names.items()}  # a checkpoint may have views


def latents(config: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """(F, C, H, W) that published students of a network of this size were trained on: 81 frames at 480 × 832."""
    same = ("num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "ffn_dim")
    known = any(all(config.get(name) == full[name] for name in same) for full in (T2V_1_3B, T2V_14B))
    return LATENT if known else None


def _wrong(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[str]:
    both = [name for name in own if name in theirs]
    shapes = [(n, list(theirs[n].shape), list(own[n].shape)) for n in both if theirs[n].shape != own[n].shape]
    if shapes:
        yield _some([f"{name} is {there}: must be {here}" for name, there, here in shapes])
    if types := [f"{n} is {theirs[n].dtype}" for n in both if theirs[n].dtype not in TYPES]:
        yield f"{_some(types)}: must be one of {', '.join(map(str, TYPES))}"
    if missing := [name for name in own if name not in theirs]:
        yield f"it has no {_some(missing)}"
    if unexpected := [name for name in theirs if name not in own]:
        yield f"it has {_some(unexpected)}, which the network has not"


def _some(of: Sequence[str]) -> str:
    rest = f" and {len(of) - SHOWN} more" if len(of) > SHOWN else ""
    return ", ".join(of[:SHOWN]) + rest
