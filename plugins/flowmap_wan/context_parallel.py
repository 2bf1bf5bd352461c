"""Networks of the family on several ranks, each with some of the tokens; attention in some of the heads."""

from __future__ import annotations

from collections.abc import Mapping

from flowmap import FlowMap
from flowmap._types import Role
from flowmap.context_parallel import Context

from .network import WanFlowMap


def divides(ranks: int, heads: int) -> None:
    """A ValueError where a network of so many attention heads cannot be split over `ranks`."""
    if heads % ranks:
        allowed = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
        raise ValueError(f"the network has {heads} attention heads, as many for each: must be one of {allowed}")


def split(nets: Mapping[Role, FlowMap], context: Context) -> None:
    """`WanSpec.split`."""
    for u in nets.values():
        assert isinstance(u, WanFlowMap)  # what `build` makes
        divides(context.size, int(u.net.config.num_attention_heads))
        u.context = context
