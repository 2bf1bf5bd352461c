"""What iterations cost on average: the calls of many, drawn without any network, at the prices of calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeAlias

import torch
from attrs import define, evolve, field
from torch import Tensor, nn

from .._types import Cache, Cond, Latent, Role, Time
from ..data import TensorData
from ..model import FlowMap, Kept, Recorded, Spans, Wrapped
from ..objectives import Networks, equipped
from ..recipe import Stage
from ..training.loop import Trainer
from .flops import Meter
from .trace import Call, Calls

Price: TypeAlias = Callable[[Call], float]
DRAWS = 200


@define
class Till:
    """Counts operations as a counter does."""

    spent: float = 0.0

    def get_total_flops(self) -> int:
        return int(self.spent)


class Sketch(Wrapped):
    """In the place of `u`: makes its choices, pays for its calls, computes nothing. A cache is a number of frames."""

    def __init__(self, u: nn.Module, role: Role, price: Price, till: Till, meter: Meter) -> None:
        super().__init__(u)  # type: ignore[arg-type]
        self.role, self.price, self.till, self.meter = role, price, till, meter
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        record, cache = (cache, cache.before) if isinstance(cache, Recorded) else (None, cache)
        call = Calls().forward(self.role, z, cond, cache if isinstance(cache, Kept) else None)
        if isinstance(cache, Kept):
            cache.memory = (call,) if call.history else cache.memory
        elif not isinstance(cache, Spans):
            call = evolve(call, past=int(cache or 0))
        self.till.spent += len(z) * self.price(call)
        if record is not None:
            record.after = int(cache or 0) + z.shape[1]
        u = z * 0 + self.scale
        return u.expand(len(cache.starts), *u.shape) if isinstance(cache, Spans) else u

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        past = int(cache or 0)
        with self.meter.spending("history"):
            self.till.spent += len(x) * self.price(Call(self.role, "extend", x.shape[1], past=past))
        return past + x.shape[1]

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        return self.extend(cache, z, cond)

    def keeping(self, samples: Tensor) -> Kept | None:
        return self.u.keeping(samples)

    def recording(self, cache: Cache) -> Recorded | None:
        return None if self.u.recording(None) is None else Recorded(cache)

    def trained(self) -> Mapping[str, nn.Parameter]:
        return {"scale": self.scale}

    def thaw(self) -> None:
        return


def drawn(
    stage: Stage, nets: Networks, frames: int, cond: frozenset[str], price: Price, seed: int, number: int, count: int
) -> list[Mapping[str, float]]:
    """Operations by part of each of the iterations 0, ..., count - 1, forward passes alone.

    price: of a sample's call. The choices are those that `Trainer` makes in stage `number` with this seed and
    `stage.batch`; neither height nor width decides anything.
    """
    till = Till()
    meter = Meter(till)
    sketches: dict[Role, FlowMap] = {role: Sketch(u, role, price, till, meter) for role, u in nets.items()}
    text = {name: torch.zeros(stage.batch, 1) for name in cond}
    data = TensorData(torch.ones(stage.batch, frames, 1, 1, 1), text, {name: torch.zeros(1, 1) for name in cond})
    found: list[Mapping[str, float]] = []
    with ExitStack() as stack:
        for role, sketch in sketches.items():
            stack.enter_context(meter.watch(role, sketch))
        learning = equipped(sketches, stage.method.equips, data.batch([0]))
        trainer = Trainer(learning, evolve(stage, method=meter.method(stage.method), micro=None), data, seed, number)
        for iteration in range(count):
            meter.spent.clear()
            trainer.step(iteration, apply=False)  # no weight decides what is called
            meter.settle()
            found.append({part: float(spent) for part, spent in meter.spent.items() if spent})
    return found


@define
class Tariff:
    """The prices of a traced step's calls; `ask` finds those of others, by making them."""

    known: dict[Call, float]
    ask: Price
    asked: dict[Call, float] = field(factory=dict)

    def __call__(self, call: Call) -> float:
        if call in self.known:
            return self.known[call]
        if call not in self.asked:
            self.asked[call] = self.ask(call)
        return self.asked[call]


def mean(draws: list[Mapping[str, float]]) -> dict[str, float]:
    parts = {part: 0.0 for one in draws for part in one}
    return {part: sum(one.get(part, 0.0) for one in draws) / len(draws) for part in parts}
