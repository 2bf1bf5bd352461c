"""Samples of a recipe's sizes, of zeros."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data import Data, TensorData
from ..data.sized import TellsSizes
from ..model import FlowMapSpec
from ..recipe import Recipe, RecipeError


def data_of(recipe: Recipe, samples: int, sizes: Mapping[str, tuple[int, ...]]) -> TensorData:
    cond = cond_of(recipe.backbone, samples, sizes)
    return TensorData(torch.zeros(samples, *sizes["x"]), cond, recipe.backbone.null(cond))


def cond_of(backbone: FlowMapSpec, samples: int, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Zeros, and ones where the backbone's example has integers: masks of texts without padding, which cost most."""
    _, like = backbone.example(1)
    whole = {name for name, value in like.items() if not value.is_floating_point()}
    zeros = {name: torch.zeros(samples, *size) for name, size in sizes.items() if name != "x"}
    return {name: torch.ones_like(v, dtype=like[name].dtype) if name in whole else v for name, v in zeros.items()}


def sizes_of(recipe: Recipe) -> tuple[int, dict[str, tuple[int, ...]]]:
    """(frames, of a sample's latents "x" and of each condition)."""
    data = recipe.data
    if isinstance(data, TellsSizes):
        told = dict(data.sizes(recipe.backbone))
        return told["x"][0], told
    if isinstance(data, Data):
        one = data.batch([0])
        return one.x.shape[1], {"x": tuple(one.x.shape[1:]), **{k: tuple(v.shape[1:]) for k, v in one.cond.items()}}
    what = "no data" if data is None else f"data = {type(data).__name__}(...), which does not say of what size"
    raise RecipeError(f"the recipe has {what}: a plan needs Sized(data, x=(F, C, H, W), cond={{...}}) of flowmap.data")
