"""A real step of a stage, on hollow networks: what it computes, by part and by call, and what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from attrs import define, evolve, field, frozen
from torch import Tensor, nn

from .._types import Cache, Cond, Latent, Rng, Role, Time
from ..data import Data
from ..method import Method
from ..model import FlowMap, Kept, Recorded, Spans
from ..objectives import Networks
from ..objectives.flow_map_matching import FlowMapMatching
from ..recipe import Stage
from ..times import TimeSampler
from ..training.loop import Trainer
from ..training.ranks.offload import Inputs, Weights, ways
from .counts import KINDS, Kind, Ledger, Moment
from .flops import Meter


@frozen
class Call:
    """What decides the cost of a sample's call: frames in z, of history in the condition, and in the cache.

    what: "forward", or "extend", which encodes a finished chunk. kept: its history was kept by a call before.
    """

    role: Role
    what: str
    frames: int
    history: int = 0
    past: int = 0
    kept: bool = False


@define
class Calls:
    """What is known of calls by looking at a network's arguments."""

    prices: dict[Call, float] = field(factory=dict)  # operations a sample
    _past: dict[int, int] = field(factory=dict)  # frames in a cache by its id: to hold it would keep it in memory

    def forward(self, role: Role, z: Latent, cond: Cond, cache: Cache) -> Call:
        history = cond["history"].shape[1] if "history" in cond else 0
        if isinstance(cache, Kept):
            return Call(role, "forward", z.shape[1], history, kept=bool(cache.memory))
        return Call(role, "forward", z.shape[1], history, self.past(cache))

    def made(self, cache: Cache, z: Latent) -> None:
        """By a call on z that kept its own input."""
        if isinstance(cache, Recorded) and cache.after is not None:
            self._past[id(cache.after)] = self.past(cache) + z.shape[1]

    def extended(self, role: Role, cache: Cache, x: Latent, found: Cache) -> Call:
        """That of encoding the chunk `x` after what is in `cache`, which became `found`."""
        past = self.past(cache)
        if found is not None:
            self._past[id(found)] = past + x.shape[1]
        return Call(role, "extend", x.shape[1], past=past)

    def past(self, cache: Cache) -> int:
        cache = cache.before if isinstance(cache, Recorded) else cache
        return 0 if cache is None or isinstance(cache, Spans) else self._past[id(cache)]


@frozen
class Traced:
    """One iteration. parts: operations; prices: of calls, a sample; bytes by kind, and the fullest moments.

    weights_moved, inputs_moved: bytes that came from the host's memory. single: the share of the operations that is in
    float32. accumulated: the gradients, in bytes, of the role that has most; those of one role are gone before
    another's are made.
    """

    parts: Mapping[str, float]
    single: float
    prices: Mapping[Call, float]
    lasting: Mapping[Kind, int]
    accumulated: int
    highest: Moment
    fullest: Moment
    weights_moved: int = 0
    inputs_moved: int = 0


def trace(stage: Stage, nets: Networks, data: Data, seed: int, number: int, iteration: int) -> Traced:
    """Iteration `iteration` of stage `number`, as `Trainer` does it; only `stage.batch` samples are there."""
    parts: list[Meter] = []
    ledger = Ledger(lambda: parts[0].part)
    parts.append(meter := Meter(ledger))
    calls = Calls()
    adapters = [p for u in nets.values() for p in u.trained().values()]
    ledger.label("adapters", adapters)
    own = {id(p) for p in adapters}
    ledger.label("weights", (t for u in nets.values() for t in _tensors_of(u) if id(t) not in own))
    offloading = ways(nets)
    away = {i for way in offloading if isinstance(way, Weights) for i in way.host}
    ledger.label("host", (p for u in nets.values() for p in u.parameters() if id(p) in away))
    for way in offloading:
        way.moved, way.keeping = 0, lambda: ledger.making("host")
    with ExitStack() as stack:
        for role, u in nets.items():
            stack.enter_context(meter.watch(role, u))
            stack.enter_context(_priced(role, u, ledger, calls))
            stack.enter_context(_remembered(role, u, meter, ledger, calls))
        trainer = Trainer(nets, evolve(stage, method=meter.method(stage.method)), data, seed, number)
        ledger.label("average", (t for a in trainer.averages.values() for t in a.tensors.values()))
        for role, optimizer in trainer.optimizers.items():
            stack.enter_context(_gradients(trainer.trained[role].values(), ledger))
            stack.enter_context(_optimising(optimizer, ledger))
        stack.enter_context(ledger)
        trainer.step(iteration)
        meter.settle()
    lasting: dict[Kind, int] = {kind: ledger.held[kind] for kind in KINDS}
    gradients = [sum(_size(p) for p in trained.values() if p.requires_grad) for trained in trainer.trained.values()]
    lasting["gradients"] = sum(gradients)
    found = {part: float(count) for part, count in meter.spent.items() if count}
    single = ledger.single / max(1, ledger.flops)
    moved = [sum(way.moved for way in offloading if isinstance(way, kind)) for kind in (Weights, Inputs)]
    return Traced(found, single, calls.prices, lasting, max(gradients), ledger.highest, ledger.fullest, *moved)


def replaced(method: Method, objective: Any) -> Method:
    """`method` with each of its objectives as `objective` makes it."""
    return evolve(
        method,
        updates=tuple(evolve(u, terms=tuple((weight, objective(o)) for weight, o in u.terms)) for u in method.updates),
    )


def all_off_diagonal(method: Method) -> Method:
    """A derivative for every sample, where there is one for any: what a micro-batch can come to, on its own."""
    return replaced(method, lambda o: evolve(o, times=OffDiagonal(o.times)) if isinstance(o, FlowMapMatching) else o)


@frozen
class OffDiagonal:
    """`times`, drawn again where r = t, a few times at most: a sampler of the diagonal alone stays what it is."""

    times: TimeSampler

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        t, r = self.times(n, rng, like)
        for k in range(16):
            on = t == r
            if not on.any():
                break
            other_t, other_r = self.times(n, rng.fork(0x0FF, k), like)
            t, r = torch.where(on, other_t, t), torch.where(on, other_r, r)
        return t, r


# ------------------------------------------------------------------ what is watched
@contextmanager
def _priced(role: Role, u: FlowMap, ledger: Ledger, calls: Calls) -> Iterator[None]:
    before: list[tuple[Call, int]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        before.append((calls.forward(role, args[0], args[3], _cache(args, kwargs)), ledger.flops))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call, flops = before.pop()
        calls.prices[call] = (ledger.flops - flops) / len(args[0])
        calls.made(cache := _cache(args, kwargs), args[0])
        if isinstance(cache, Recorded):
            ledger.label("cache", _tensors_in(cache.after))

    handles = (
        u.register_forward_pre_hook(enter, with_kwargs=True),
        u.register_forward_hook(leave, with_kwargs=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cache(args: Any, kwargs: Any) -> Cache:
    """That a network is called with."""
    return args[4] if len(args) > 4 else kwargs.get("cache")


@contextmanager
def _remembered(role: Role, u: FlowMap, meter: Meter, ledger: Ledger, calls: Calls) -> Iterator[None]:
    clean, noisy = u.extend, u.extend_noisy

    def watched(cache: Cache, x: Latent, encode: Callable[[], Cache]) -> Cache:
        before = ledger.flops
        with meter.spending("history"):
            found = encode()
        calls.prices[calls.extended(role, cache, x, found)] = (ledger.flops - before) / len(x)
        ledger.label("cache", _tensors_in(found))
        return found

    def extend(cache: Cache, x: Latent, cond: Cond) -> Cache:
        return watched(cache, x, lambda: clean(cache, x, cond))

    def extend_noisy(cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        return watched(cache, z, lambda: noisy(cache, z, t, cond))

    u.extend, u.extend_noisy = extend, extend_noisy  # type: ignore[method-assign]
    try:
        yield
    finally:
        del u.extend, u.extend_noisy


@contextmanager
def _gradients(parameters: Iterable[nn.Parameter], ledger: Ledger) -> Iterator[None]:
    def arrived(p: Tensor) -> None:
        if p.grad is not None:
            ledger.label("gradients", [p.grad])

    handles = [p.register_post_accumulate_grad_hook(arrived) for p in parameters if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _optimising(optimizer: torch.optim.Optimizer, ledger: Ledger) -> Iterator[None]:
    """What it keeps is made in its first step."""
    before: list[Any] = []

    def enter(*_: Any) -> None:
        before.append(ledger.now)
        ledger.now = "optimiser"

    def leave(*_: Any) -> None:
        ledger.now = before.pop()

    handles = optimizer.register_step_pre_hook(enter), optimizer.register_step_post_hook(leave)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors_of(u: nn.Module) -> Iterator[Tensor]:
    """With tables that are no buffers: complex ones would lose their imaginary part."""
    yield from u.parameters()
    yield from u.buffers()
    yield from (value for module in u.modules() for value in vars(module).values() if isinstance(value, Tensor))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Of a cache, which is a value of the backbone's own making."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors_in(part)
    elif attrs.has(type(value)):
        yield from _tensors_in([getattr(value, a.name) for a in attrs.fields(type(value))])


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
