"""What a method costs, in calls of its networks: G with a graph to run backward through, F without; GJ and J are those
of them that push a tangent forward too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.autograd.forward_ad import unpack_dual

from .._types import Cache, Cond, Latent, Role, Time
from ..model import FlowMap, Wrapped


class CountingFlowMap(Wrapped):
    """`u`, counting samples: a call on a batch of n is n, and one call of two branches is 2 n.

    A Jacobian-vector product is a call too: `graph_j` of `graph` and `plain_j` of `plain` were one.
    """

    def __init__(self, u: FlowMap) -> None:
        super().__init__(u)
        self.reset()

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        out: Latent = self.u(z, t, r, cond, cache)
        tangent = any(unpack_dual(a).tangent is not None for a in (z, t, r))
        # inside a product no tensor says that it has a graph
        graph = out.requires_grad or (tangent and any(p.requires_grad for p in self.u.parameters()))
        if torch.is_grad_enabled() and graph:
            self.graph += len(z)
            self.graph_j += len(z) * tangent
        else:
            self.plain += len(z)
            self.plain_j += len(z) * tangent
        return out

    def reset(self) -> None:
        self.graph = self.plain = 0  # G, F
        self.graph_j = self.plain_j = 0  # of which GJ, J


def counting(nets: Mapping[Role, FlowMap]) -> dict[Role, CountingFlowMap]:
    """The networks, each with a count of its own."""
    return {role: CountingFlowMap(u) for role, u in nets.items()}
