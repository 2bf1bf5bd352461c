"""The networks of a recipe in numbers: what is frozen, trained, put together for a call, and left in the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

import torch
from attrs import frozen
from torch import Tensor, nn

from .._types import Role
from ..objectives import Networks
from ..recipe import Recipe
from ..training.ranks.networks import remaining
from ..training.ranks.offload import Weights, ways

ROLES: tuple[Role, ...] = get_args(Role)


@frozen
class Shape:
    """Of the networks, in bytes where nothing else is said: what sharding by blocks puts together for a call."""

    frozen: int  # parameters
    trained: Mapping[Role, int]  # parameters, that have an optimiser in some stage
    judge: int  # of the frozen ones, those that no stage calls: the teacher of an evaluation
    block: int  # the largest
    outside: int
    block_gradients: int
    result: int  # what comes out, whole; with an offload, what its type loses is not asked of it
    left: int  # the networks that are whole on the first GPU in the end
    sizes: Mapping[Role, int]  # parameters of what a role calls, with those that roles share

    @property
    def end(self) -> int:
        """What is left on the first GPU to be judged, and as much as the result, to measure what its type loses."""
        return self.left + self.result

    def gathered(self, gpus: int) -> int:
        """A block that runs and the next one, what is outside of the blocks, and a block's gradients twice."""
        return 2 * self.block + self.outside + 2 * self.block_gradients if gpus > 1 else 0


def shape(recipe: Recipe, nets: Networks) -> Shape:
    """Of `networks`."""
    blocks = {id(block): block for u in nets.values() for block in u.blocks}
    trained = {role: nets[role].trained() for role in nets if role in recipe.trains}
    own = {id(p) for of in trained.values() for p in of.values()}
    everything = _unique(p for u in nets.values() for p in u.parameters())
    inside = [_unique(block.parameters()) for block in blocks.values()]
    within = {id(p) for of in inside for p in of}
    called = {id(p) for role in recipe.roles for p in nets[role].parameters()}
    left = remaining(recipe, judged(recipe))
    host = {i for way in ways(nets) if isinstance(way, Weights) for i in way.host}
    return Shape(
        frozen=sum(map(_numbers, (p for p in everything if id(p) not in own))),
        sizes={role: sum(map(_numbers, _own(nets, frozenset[Role]({role})))) for role in ROLES if role in nets},
        trained={role: sum(p.numel() for p in of.values()) for role, of in trained.items()},
        judge=sum(map(_numbers, (p for p in everything if id(p) not in called))),
        block=max((sum(map(_bytes, of)) for of in inside), default=0),
        outside=sum(_bytes(p) for p in everything if id(p) not in within),
        block_gradients=max((sum(_bytes(p) for p in of if id(p) in own) for of in inside), default=0),
        result=0 if recipe.offload else sum(map(_bytes, _own(nets, frozenset[Role]({recipe.result})))),
        left=sum(_bytes(p) for p in _own(nets, left) if id(p) not in host),
    )


def _own(nets: Networks, roles: frozenset[Role]) -> list[nn.Parameter]:
    """Of networks that are built for these roles alone: without what others train."""
    whole = _unique(p for role in roles for p in nets[role].parameters())
    own = {id(p) for role in roles for p in nets[role].trained().values()}
    others = {id(p) for role in nets.keys() - roles for p in nets[role].trained().values()} - own
    return [p for p in whole if id(p) not in others]


def judged(recipe: Recipe) -> bool:
    """Whether a run builds a teacher to compare with, if no stage needs one."""
    return recipe.evaluation is not None


def _unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(p): p for p in parameters}.values())


def _numbers(p: Tensor) -> int:
    """Of codes of four bits two are in a byte; scales count, too."""
    return p.numel() * (2 if p.dtype == torch.uint8 else 1)


def _bytes(p: Tensor) -> int:
    return p.numel() * p.element_size()
