"""The networks of a recipe: whole, in pieces, or whole again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..._types import Role
from ...context_parallel import Context
from ...model import FlowMap, FlowMapSpec, Splits
from ...objectives import Networks
from ...recipe import Recipe, RecipeError
from .agree import ranks
from .context_groups import context
from .distributed import Distribution
from .offload import offload
from .sharding import pieces


def precision(recipe: Recipe) -> torch.dtype:
    """Of frozen weights and forward passes."""
    return torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32


def build(
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    *,
    judged: bool = False,
    shared: Context | None = None,
) -> Networks:
    """All networks of the recipe, each from the spec of its role.

    judged: a teacher too, if no stage needs one, to compare with. A teacher that the recipe fine-tunes is not frozen.
    shared: the ranks that share a sample's tokens.
    """
    nets: dict[Role, FlowMap] = {}
    for spec, of in specs(recipe, judged):
        at = device if recipe.offload is None else torch.device("cpu")
        nets |= (built := _built(recipe, spec, of, at, dtype=dtype, shared=shared))
        if recipe.offload is not None:
            offload(built, recipe.offload, device)
    return nets


def spread(
    recipe: Recipe, device: torch.device, dtype: torch.dtype, distribution: Distribution, *, judged: bool
) -> Networks:
    """`build`, in pieces where there are several ranks; none of which holds a whole network, if it can be streamed."""
    shared = context(distribution)
    if ranks() == 1 or not distribution.shard:
        return build(recipe, device, dtype, judged=judged, shared=shared)
    nets, mesh = dict[Role, FlowMap](), distribution.mesh(device)
    for spec, of in specs(recipe, judged):
        nets |= pieces(spec, partial(_built, recipe, spec, of, dtype=dtype, shared=shared), mesh, device, dtype)
    return nets


@torch.no_grad()
def whole_again(
    recipe: Recipe, tensors: Mapping[Role, Mapping[str, Tensor]], device: torch.device, dtype: torch.dtype, judged: bool
) -> Networks:
    """What is left to do with them in one process, written and judged, with what several have trained."""
    nets: dict[Role, FlowMap] = {}
    left = remaining(recipe, judged)
    for spec, of in specs(recipe, judged):
        if of & left:
            nets |= _built(recipe, spec, of & left, device, dtype=dtype)
    for role in tensors.keys() & nets.keys() & {"student", "teacher"}:
        for name, p in nets[role].trained().items():
            p.copy_(tensors[role][name])
    return nets


def remaining(recipe: Recipe, judged: bool) -> frozenset[Role]:
    """The networks that are still needed once all is trained: what comes out, and a teacher to compare it with."""
    return frozenset[Role]({recipe.result}) | (frozenset[Role]({"teacher"}) if judged else frozenset[Role]())


def trained(recipe: Recipe, nets: Networks) -> Mapping[Role, Mapping[str, nn.Parameter]]:
    """What the run trains, by role."""
    return {role: nets[role].trained() for role in sorted(recipe.trains)}


def specs(recipe: Recipe, judged: bool) -> list[tuple[FlowMapSpec, frozenset[Role]]]:
    """Which spec builds which roles."""
    roles = recipe.roles | (frozenset[Role]({"teacher"}) if judged else frozenset[Role]())
    together = roles - {"forward_teacher"}  # it is the student of its spec
    found = [(spec, frozenset(role for role in together if recipe.spec_of(role) == spec)) for spec in recipe.specs]
    found += [(recipe.spec_of(role), frozenset[Role]({role})) for role in roles - together]
    return [(spec, of) for spec, of in found if of]


def _built(
    recipe: Recipe,
    spec: FlowMapSpec,
    roles: frozenset[Role],
    device: torch.device,
    *,
    dtype: torch.dtype,
    shared: Context | None = None,
) -> Mapping[Role, FlowMap]:
    alone = "forward_teacher" in roles
    try:
        nets = _forward_teacher(spec, device, dtype) if alone else spec.build(roles, device=device, dtype=dtype)
        if shared is not None:
            assert isinstance(spec, Splits)  # `unsplit` has looked
            spec.split(nets, shared)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if "teacher" in recipe.trains & nets.keys():
        nets["teacher"].thaw()
    return nets


def _forward_teacher(spec: FlowMapSpec, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
    u = spec.build(frozenset[Role]({"student"}), device=device, dtype=dtype)["student"].requires_grad_(False)
    return {"forward_teacher": u}
