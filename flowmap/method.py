"""A method says which network is updated, by which objectives, how often."""

from __future__ import annotations

from attrs import field, frozen, validators

from ._types import Role
from .objectives import Objective


@frozen
class Update:
    """One optimiser step of `role` on a weighted sum of objectives, every `every` iterations."""

    role: Role = field(validator=validators.in_(("student", "teacher", "critic")))
    terms: tuple[tuple[float, Objective], ...] = field(validator=validators.min_len(1))
    every: int = field(default=1, validator=validators.ge(1))


@frozen
class Method:
    """updates: in the order they happen in an iteration. citations: BibTeX, of the method and of its parts."""

    name: str
    updates: tuple[Update, ...] = field(validator=validators.min_len(1))
    citations: tuple[str, ...] = ()

    @property
    def needs(self) -> frozenset[Role]:
        """The networks that its objectives call."""
        return frozenset[Role]().union(*(o.needs for u in self.updates for _, o in u.terms))

    @property
    def trains(self) -> frozenset[Role]:
        return frozenset(u.role for u in self.updates)
