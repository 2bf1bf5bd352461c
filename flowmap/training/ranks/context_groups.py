"""The ranks that share the tokens of their samples: which they are, and what cannot be shared so."""

from __future__ import annotations

from datetime import timedelta

from torch import distributed

from ...context_parallel import Context
from ...model import Splits
from ...recipe import Recipe
from .agree import rank
from .distributed import Distribution


def context(distribution: Distribution) -> Context | None:
    """This rank's, of `distribution.context` neighbours; None where each rank has samples of its own.

    Every rank must ask.
    """
    size = distribution.context
    if size == 1:
        return None
    group, _ = distributed.new_subgroups(size, timeout=timedelta(seconds=distribution.seconds))
    return Context(size, rank() % size, group)


def unsplit(recipe: Recipe, size: int) -> list[str]:
    """Why the networks of `recipe` cannot share their tokens among `size` ranks, as far as that is known unbuilt."""
    if size == 1:
        return []
    found = []
    for spec in recipe.specs:
        try:
            if not isinstance(spec, Splits):
                raise ValueError(f"{type(spec).__name__} cannot: its networks are for one rank a sample; leave it out")
            spec.splits(size)
        except ValueError as error:
            found.append(f"context = {size}, ranks that share a sample's tokens: {error}")
    if recipe.equips:
        roles = " and ".join(sorted(recipe.equips))
        found.append(
            f"context = {size}, ranks that share a sample's tokens: the {roles} of this recipe is judged by the tokens "
            "of its blocks, of which no rank would have all; leave it out, or take a method without such heads"
        )
    return [*dict.fromkeys(found)]
