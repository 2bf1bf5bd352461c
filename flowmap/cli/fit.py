"""Whether a backbone's network takes encoded data, by shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._types import Role
    from ..data.check import Finding
    from ..data.format import Index
    from ..model import FlowMapSpec

ROLES: tuple[Role, ...] = ("student", "teacher")


def fit(index: Index, backbone: FlowMapSpec) -> Iterator[Finding]:
    """A forward pass of the real network without its numbers, on one sample of the data's shapes."""
    import torch

    from .._types import Batch
    from ..data.check import Finding
    from ..data.format import DTYPES
    from ..planning.hollow import Hollow, HollowError, hollowed
    from ..recipe import RecipeError
    from ..training.ranks import fits

    meta = torch.device("meta")
    name = backbone.about().name
    try:
        nets = backbone.outline().build(frozenset(ROLES), device=meta, dtype=torch.float32)
    except ValueError as error:
        yield Finding("warning", f"not compared with the network of {name}: {error}")
        return
    hollowed(nets.values())
    x = Hollow(torch.zeros(1, *index.latent.shape, device=meta))
    # masks that let all through
    cond = {key: torch.ones(1, *entry.shape, dtype=DTYPES[entry.dtype]) for key, entry in index.cond.items()}
    try:
        fits.check(nets, Batch(x, cond, cond), dict.fromkeys(ROLES, name), "the data")
    except RecipeError as error:
        yield from (Finding("refused", text) for text in error.errors)
    except HollowError as error:
        yield Finding("warning", f"not compared with the network of {name}: {error}")
    else:
        yield Finding("note", f"the network of {name} takes latents and conditions of these shapes")
