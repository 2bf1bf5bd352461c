"""Several objectives, each on its share of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.func import functional_call

from .._types import NOTHING, Batch, Mean, Rng, Role, Shared, select, to_device
from ..pieces import in_pieces
from . import Equip, Equips, Loss, Networks, Objective, Ordered, from_data, guides, united, within

Parts: TypeAlias = tuple[tuple[float, Objective], ...]


def _parts(parts: Sequence[tuple[float, Objective]]) -> Parts:
    return tuple(parts)


@frozen
class Mixture(Equips, Ordered):
    """The mean over samples where each sample belongs to one of the objectives, drawn anew each time.

    parts: (share, objective); the shares sum to 1 and are stratified over the global batch. On average it is the sum of
    the objectives, weighted by their shares, at the cost of one: as terms of an `Update` each would see the whole
    batch. An objective whose share of a micro-batch is empty is not called, but on several ranks: see `Shared.ranks`;
    there its call changes neither the value nor the gradient, finite or not, but for one case: where networks are
    sharded, what is not finite within a network may make of its gradient of zero one that is not, and the step is
    skipped. What reweights share is each part's own.
    """

    parts: Parts = field(converter=_parts)

    @parts.validator
    def _whole(self, attribute: object, parts: Parts) -> None:
        shares = [share for share, _ in parts]
        if not shares or min(shares) < 0.0 or not math.isclose(sum(shares), 1.0):
            raise ValueError(f"Mixture.parts have the shares {shares}: must be at least 0 and sum to 1")

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset[Role]().union(*(objective.needs for _, objective in self.parts))

    @property
    def from_data(self) -> bool:
        return from_data(objective for _, objective in self.parts)

    @property
    def guides(self) -> Mapping[Role, float]:
        return guides(objective for _, objective in self.parts)

    @property
    def equips(self) -> Mapping[Role, Equip]:
        return united("Mixture.parts", (o.equips for _, o in self.parts if isinstance(o, Equips)))

    def first(self, n: int, rng: Rng) -> Tensor:
        part, found = self._part(n, rng), torch.zeros(n, dtype=torch.bool)
        for k, (_, objective) in enumerate(self.parts):
            if isinstance(objective, Ordered):
                found |= (part == k) & objective.first(n, rng.fork(k))
        return found

    def _part(self, n: int, rng: Rng) -> Tensor:
        """[n] which objective a sample belongs to."""
        ends = torch.tensor([*accumulate(share for share, _ in self.parts[:-1])])
        return torch.bucketize(rng.stratified(n, NOTHING), ends, right=True)

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        part, value = self._part(len(batch), rng), torch.zeros((), device=batch.x.device)
        logs, bad = dict[str, Mean](), dict[str, Mean]()
        finite = torch.ones(len(batch), dtype=torch.bool, device=batch.x.device)
        for k, (_, objective) in enumerate(self.parts):
            mine, own = (part == k).nonzero()[:, 0], rng.fork(k)
            if not len(mine) and shared.ranks == 1:
                continue
            with shared.at(k):
                if len(mine):
                    loss = objective(nets, _batch(batch, mine), _rng(own, mine, len(batch)), shared)
                    told = loss.value.detach().isfinite() if loss.finite is None else loss.finite
                    finite[to_device(mine, batch.x.device)] = told
                else:
                    loss = _idle(objective, nets, batch, own, shared)
            value = value + (len(mine) / len(batch) * loss.value if len(mine) else loss.value)
            logs |= {name: logs[name] + mean if name in logs else mean for name, mean in loss.logs.items()}
            bad |= within(k, loss.nonfinite)
        return Loss(value, logs, finite, bad)


def _idle(objective: Objective, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
    """The calls of `objective` on one sample that counts for nothing: other ranks make them, and wait for this one.

    Nothing is chosen in place of its value and of the gradients of what the networks gave and of their weights: 0 times
    what is not finite would not be 0, and cost all ranks their step. Not of weights in pieces: FSDP puts its own in
    their place.
    """
    first, of = torch.zeros(1, dtype=torch.long), _Of(nets)
    pieces = any(in_pieces(p) for p in of.parameters())
    weights = {} if pieces else {name: _silent(p) for name, p in of.named_parameters()}
    with shared.idle(), _unheard(nets):
        call = partial(objective, nets, _batch(batch, first), _rng(rng, first, len(batch)), shared)
        loss: Loss = functional_call(of, weights, (call,))
    none = torch.zeros((), device=batch.x.device)
    logs, bad = ({name: Mean(none, none) for name in means} for means in (loss.logs, loss.nonfinite))
    return Loss(_constant(loss.value, none), logs, nonfinite=bad)


class _Of(nn.Module):
    """A call within networks, as one of the module that has them all."""

    def __init__(self, nets: Networks) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({str(role): u for role, u in nets.items()})

    def forward(self, call: Callable[[], Loss]) -> Loss:
        return call()


def _silent(p: Tensor) -> Tensor:
    """p, whose gradient is zero whatever comes back."""
    own = p.view_as(p)
    if own.requires_grad:
        own.register_hook(torch.zeros_like)
    return own


@contextmanager
def _unheard(nets: Networks) -> Iterator[None]:
    """While entered, what networks give out has their graph, through which a gradient of zero goes back."""

    def hook(u: Any, given: Any, out: Any) -> Any:
        return _constant(out, out.detach()) if isinstance(out, Tensor) else out

    hooks = [u.register_forward_hook(hook) for u in nets.values()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _constant(x: Tensor, value: Tensor) -> Tensor:
    """`value`, in the graph of x."""
    return torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x, value)


def _batch(batch: Batch, index: Tensor) -> Batch:
    rows = to_device(index, batch.x.device)
    null = {name: value if len(value) == 1 else value[rows] for name, value in batch.null.items()}
    return Batch(batch.x[rows], select(batch.cond, rows), null)


def _rng(rng: Rng, index: Tensor, n: int) -> Rng:
    """`rng` of n samples as it is for those of `index`: they draw what they would have drawn among all."""
    positions = tuple(range(n)) if rng.positions is None else rng.positions
    return Rng(rng.key, tuple(positions[i] for i in index.tolist()), n if rng.total is None else rng.total)
