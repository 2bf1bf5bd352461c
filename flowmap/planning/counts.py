"""What a step holds in memory and computes, written down as it runs, of hollow tensors and of real ones."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import torch
from attrs import frozen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from .hollow import behind

Kind: TypeAlias = Literal["weights", "adapters", "gradients", "optimiser", "average", "activations", "cache", "host"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PASSING: tuple[Kind, ...] = ("activations", "cache")  # what comes and goes with every call

aten = torch.ops.aten
# torch counts the kernels of accelerators; the one for processors has the same products
_ATTENTION: Mapping[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **named: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *rest, **named: (
        sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)
    ),
}


@frozen
class Moment:
    """What was held at some moment, bytes by kind, and what was running."""

    held: Mapping[Kind, int]
    part: str

    def passing(self) -> int:
        return sum(self.held[kind] for kind in PASSING)


class Ledger(TorchDispatchMode):
    """While entered, every storage that an operation makes is of the kind `now`, until it is gone or labelled.

    `highest`: the moment when most was held that comes and goes with every call; `fullest`: the same with gradients.
    flops: of matrix products, convolutions and attention, by torch's own formulas; single: of those, in float32.
    """

    def __init__(self, part: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self.flops, self.single, self._part = 0, 0, part
        self.now: Kind = "activations"
        self.held: Counter[Kind] = Counter()
        self.highest = self.fullest = Moment(Counter(), "")
        self._known: dict[int, tuple[weakref.ref[Any], int, Kind]] = {}
        self._widened: set[int] = set()  # storages of what was narrow
        self._most = self._full = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = operation(*args, **kwargs)
        packet, spent = operation._overloadpacket, 0
        if packet in flop_registry:
            spent = flop_registry[packet](*args, **kwargs, out_val=found)
        elif packet in _ATTENTION:
            spent = _ATTENTION[packet](*args, **kwargs)
        self.flops += spent
        self.single += spent if spent and self._in_full(_first(found), args) else 0
        if packet is aten._to_copy and args[0].dtype.itemsize < found.dtype.itemsize:
            self._widened.add(id(behind(found).untyped_storage()))
        self._see(found)
        return found

    def get_total_flops(self) -> int:
        """As torch's counter has it."""
        return self.flops

    @contextmanager
    def making(self, kind: Kind) -> Iterator[None]:
        """What is made while entered is of that kind."""
        before, self.now = self.now, kind
        try:
            yield
        finally:
            self.now = before

    def label(self, kind: Kind, tensors: Iterable[Tensor]) -> None:
        """The storages of `tensors`, known or not, are of this kind from now on."""
        for tensor in tensors:
            storage = behind(tensor.detach()).untyped_storage()
            old = self._known.get(id(storage))
            if old is not None:
                self.held[old[2]] -= old[1]
                self._known[id(storage)] = (old[0], old[1], kind)
                self.held[kind] += old[1]
            else:
                self._add(storage, kind)

    def _see(self, found: Any) -> None:
        if isinstance(found, Tensor):
            storage = behind(found).untyped_storage()
            if id(storage) not in self._known:
                self._add(storage, self.now)
        elif isinstance(found, (list, tuple)):
            for value in found:
                self._see(value)

    def _add(self, storage: Any, kind: Kind) -> None:
        key, size = id(storage), storage.nbytes()
        self._known[key] = (weakref.ref(storage, lambda _: self._gone(key)), size, kind)
        self.held[kind] += size
        passing = self.held["activations"] + self.held["cache"]
        if passing > self._most:
            self._most, self.highest = passing, self._moment()
        if passing + self.held["gradients"] > self._full:
            self._full, self.fullest = passing + self.held["gradients"], self._moment()

    def _gone(self, key: int) -> None:
        _, size, kind = self._known.pop(key)
        self.held[kind] -= size
        self._widened.discard(key)

    def _in_full(self, found: Tensor, given: tuple[Any, ...]) -> bool:
        """Whether a product is one of float32: not where all that is multiplied was made wide for the sum alone, which
        a GPU does with the narrow ones (`torch.mm(..., out_dtype=)`)."""
        matrices = [x for x in given if isinstance(x, Tensor)]
        narrow = all(id(behind(x).untyped_storage()) in self._widened for x in matrices)
        return found.dtype == torch.float32 and not narrow

    def _moment(self) -> Moment:
        return Moment(Counter(self.held), self._part())


def _first(found: Any) -> Tensor:
    first: Tensor = found if isinstance(found, Tensor) else next(x for x in found if isinstance(x, Tensor))
    return first
