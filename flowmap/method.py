"""A method says which network is updated, by which objectives, how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from attrs import field, frozen

from . import validators
from ._types import Role
from .objectives import Equip, Equips, Objective, from_data, guides, taught_forward, united

Sampler: TypeAlias = Literal["flow_map", "consistency"]


def _weighted(instance: Any, attribute: Any, terms: Sequence[Any]) -> None:
    for i, term in enumerate(terms):
        pair = isinstance(term, (tuple, list)) and len(term) == 2
        if not pair or not isinstance(term[0], (int, float)) or not callable(term[1]):
            raise TypeError(f"Update.terms[{i}] = {validators.shown(term)}: must be a pair (weight, objective)")
    if not any(weight for weight, _ in terms):
        raise ValueError(f"Update.terms of the {instance.role} all have weight 0, which trains nothing: one must not")


def _updates(instance: Any, attribute: Any, updates: Sequence[Any]) -> None:
    for i, update in enumerate(updates):
        if not isinstance(update, Update):
            raise TypeError(f"Method.updates[{i}] = {validators.shown(update)}: must be an Update")


@frozen
class Update:
    """One optimiser step of `role` on a weighted sum of objectives, every `every` iterations.

    skip: of every `skip` iterations the first is left out, where an update of `every = skip` has its turn.
    """

    role: Role = field(validator=validators.in_(("student", "teacher", "critic")))
    terms: tuple[tuple[float, Objective], ...] = field(validator=[validators.min_len(1), _weighted])
    every: int = field(default=1, validator=validators.ge(1))
    skip: int | None = field(default=None, validator=validators.optional(validators.ge(2)))

    def due(self, iteration: int) -> bool:
        return iteration % self.every == 0 and (self.skip is None or iteration % self.skip != 0)


@frozen
class Method:
    """updates: in the order they happen in an iteration. citations: BibTeX, of the method and of its parts.

    sampler: how its student is sampled, along the flow or by jumps to data with fresh noise in between. guidance: what
    its student has built in; None where that is the guidance of a `FlowMapMatching` among its objectives, or none.
    """

    name: str = field(validator=validators.instance_of(str))
    updates: tuple[Update, ...] = field(validator=[validators.min_len(1), _updates])
    citations: tuple[str, ...] = ()
    sampler: Sampler = field(default="flow_map", validator=validators.in_(("flow_map", "consistency")), kw_only=True)
    guidance: float | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _ = self.equips  # raises where objectives disagree

    @property
    def needs(self) -> frozenset[Role]:
        """The networks that its objectives call."""
        return frozenset[Role]().union(*(o.needs for u in self.updates for _, o in u.terms))

    def calls(self, forward: bool) -> frozenset[Role]:
        """The networks that it calls or trains; forward: where there is a teacher of its own for `taught_forward`."""
        found = self.trains
        for needs in (o.needs for u in self.updates for _, o in u.terms):
            follows = forward and taught_forward(needs)
            found |= (needs - {"teacher"}) | {"forward_teacher"} if follows else needs
        return found

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Of all updates."""
        return tuple(o for u in self.updates for _, o in u.terms)

    @property
    def trains(self) -> frozenset[Role]:
        return frozenset(u.role for u in self.updates)

    @property
    def from_data(self) -> bool:
        """Whether it learns from the data's latents; else of data it takes the conditions, and the size of latents."""
        return from_data(self.objectives)

    @property
    def guides(self) -> Mapping[Role, float]:
        """Under which guidance its objectives ask a network, by role; on data that is the student."""
        return guides(o for u in self.updates for _, o in u.terms)

    @property
    def equips(self) -> Mapping[Role, Equip]:
        """What its objectives make of networks before training, by role."""
        objectives = (o for u in self.updates for _, o in u.terms)
        return united(self.name, (o.equips for o in objectives if isinstance(o, Equips)))
