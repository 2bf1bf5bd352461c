"""What is minimised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from attrs import field, frozen
from torch import Tensor

from .._types import Batch, Mean, Rng, Role, Shared
from ..model import FlowMap

# "student" is distilled, "teacher" is frozen, "critic" models the student's samples ("fake score").
Networks: TypeAlias = Mapping[Role, FlowMap]


@frozen
class Loss:
    """value: [] what is differentiated. logs: means by name, merged over micro-batches and ranks."""

    value: Tensor
    logs: Mapping[str, Mean] = field(factory=dict)


class Objective(Protocol):
    @property
    def needs(self) -> frozenset[Role]:
        """The networks it calls."""

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss: ...
