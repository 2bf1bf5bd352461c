"""The networks of a recipe: whole, in pieces, or whole again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from .._types import Role
from ..model import FlowMap, FlowMapSpec
from ..objectives import Networks
from ..recipe import Recipe, RecipeError
from .agree import ranks
from .distributed import Distribution
from .sharding import pieces


def precision(recipe: Recipe) -> torch.dtype:
    """Of frozen weights and forward passes."""
    return torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32


def build(recipe: Recipe, device: torch.device, dtype: torch.dtype, *, judged: bool = False) -> Networks:
    """All networks of the recipe; teacher and critic from `recipe.teacher` where that is given.

    judged: a teacher too, if no stage needs one, to compare with. A teacher that the recipe fine-tunes is not frozen.
    """
    nets: dict[Role, FlowMap] = {}
    for spec, of in _specs(recipe, judged):
        nets |= _built(recipe, spec, of, device, dtype=dtype)
    return nets


def spread(
    recipe: Recipe, device: torch.device, dtype: torch.dtype, distribution: Distribution, *, judged: bool
) -> Networks:
    """`build`, in pieces where there are several ranks; none of which holds a whole network, if it can be streamed."""
    if ranks() == 1 or not distribution.shard:
        return build(recipe, device, dtype, judged=judged)
    nets, mesh = dict[Role, FlowMap](), distribution.mesh(device)
    for spec, of in _specs(recipe, judged):
        nets |= pieces(spec, partial(_built, recipe, spec, of, dtype=dtype), mesh, device, dtype)
    return nets


@torch.no_grad()
def whole_again(
    recipe: Recipe, tensors: Mapping[Role, Mapping[str, Tensor]], device: torch.device, dtype: torch.dtype, judged: bool
) -> Networks:
    """The networks of one process, with what several have trained."""
    nets = build(recipe, device, dtype, judged=judged)
    for role in tensors.keys() & {"student", "teacher"}:
        for name, p in nets[role].trained().items():
            p.copy_(tensors[role][name])
    return nets


def trained(recipe: Recipe, nets: Networks) -> Mapping[Role, Mapping[str, nn.Parameter]]:
    """What the run trains, by role."""
    return {role: nets[role].trained() for role in sorted(recipe.trains)}


def _specs(recipe: Recipe, judged: bool) -> list[tuple[FlowMapSpec, frozenset[Role]]]:
    """Which spec builds which roles."""
    roles = recipe.roles | (frozenset[Role]({"teacher"}) if judged else frozenset[Role]())
    student = roles if recipe.teacher is None else roles & frozenset[Role]({"student"})
    both = ((recipe.backbone, student), (recipe.teacher, roles - student))
    return [(spec, of) for spec, of in both if spec is not None and of]


def _built(
    recipe: Recipe, spec: FlowMapSpec, roles: frozenset[Role], device: torch.device, *, dtype: torch.dtype
) -> Mapping[Role, FlowMap]:
    try:
        nets = spec.build(roles, device=device, dtype=dtype)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if "teacher" in recipe.trains & nets.keys():
        nets["teacher"].thaw()
    return nets
