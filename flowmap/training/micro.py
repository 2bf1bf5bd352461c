"""Which samples of the global batch are in one forward pass, and which terms see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from .._types import Rng
from ..objectives import Objective, Ordered
from ..recipe import Stage

MicroBatch: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Where its samples stand in the global batch, and the terms of the update that see it."""


def micro_batches(
    stage: Stage, iteration: int, key: tuple[int, ...], rank: int, ranks: int
) -> Mapping[int, Sequence[MicroBatch]]:
    """Those of a rank, by the update that is due; key: of the iteration.

    Each has at most `stage.micro` samples of every rank. Where there are several, the samples that an `Ordered` term
    wants first come first, on all ranks together, and all other terms of the iteration see the batch in the order of
    the first such term: what one update keeps of a micro-batch another finds.
    """
    n, due = stage.batch, [k for k, update in enumerate(stage.method.updates) if update.due(iteration)]
    places = _places(stage, rank, ranks)
    asked = {
        (k, term): _order(objective, n, Rng((*key, k, term), None, n))
        for k in due
        for term, (_, objective) in enumerate(stage.method.updates[k].terms)
        if len(places) > 1
    }
    usual = next((order for order in asked.values() if order is not None), tuple(range(n)))
    found: dict[int, list[MicroBatch]] = {}
    for k in due:
        terms: dict[tuple[int, ...], list[int]] = {}
        for term in range(len(stage.method.updates[k].terms)):
            terms.setdefault(asked.get((k, term)) or usual, []).append(term)
        found[k] = [(tuple(order[p] for p in place), tuple(of)) for order, of in terms.items() for place in places]
    return found


def _order(objective: Objective, n: int, rng: Rng) -> tuple[int, ...] | None:
    """The samples of a global batch, those that come first first; None where the objective does not mind."""
    if not isinstance(objective, Ordered):
        return None
    first = objective.first(n, rng).tolist()
    return tuple(sorted(range(n), key=lambda i: not first[i]))


def _places(stage: Stage, rank: int, ranks: int) -> list[tuple[int, ...]]:
    """Where a rank's micro-batches stand in the order of the global batch: at most `micro` samples of each at a time.

    So with as many samples a global micro-batch, the same are together on any number of ranks.
    """
    own = stage.batch // ranks
    size, found = min(stage.micro or own, own), []
    for i in range(0, own, size):
        n = min(size, own - i)
        first = i * ranks + rank * n
        found.append(tuple(range(first, first + n)))
    return found
