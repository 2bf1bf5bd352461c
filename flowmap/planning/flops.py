"""What an iteration costs in floating-point operations, by what they are spent on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from attrs import Factory, define, evolve, field, frozen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .._types import Batch, Cond, Latent, Rng, Role, Shared, Time
from ..data import Data
from ..derivative import Derivative, MeanVelocity
from ..doing import adding
from ..method import Method
from ..model import FlowMap
from ..objectives import Loss, Networks, Objective
from ..objectives.distribution_matching import CriticMatching, DistributionMatching
from ..objectives.flow_map_matching import FlowMapMatching
from ..recipe import Stage
from ..rollout import Rollout
from ..times import ALL, Span
from ..training.loop import Trainer


def flops_by_part(stage: Stage, nets: Networks, data: Data, iterations: int = 1) -> dict[str, float]:
    """Multiplications and additions of an iteration, the mean over `iterations`, in matrix products and convolutions.

    Parts: "student forward" and "student backward" of flow-map matching, its "guidance" and "derivative"; "rollout
    forward" and "rollout backward" of distribution matching, "rollout" of jumps without a graph, its "teacher" and
    "critic score"; "critic forward" and "critic backward", with a "critic rollout" where it makes its own samples.
    Trains `nets`.
    """
    counter = FlopCounterMode(display=False)
    meter = Meter(counter)
    with ExitStack() as stack:
        for role, u in nets.items():
            stack.enter_context(meter.watch(role, u))
        trainer = Trainer(nets, evolve(stage, method=meter.method(stage.method)), data)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the counter knows its products, not every fused kernel
        stack.enter_context(counter)
        for iteration in range(iterations):
            trainer.step(iteration)
        meter.settle()
    return {part: count / iterations for part, count in meter.spent.items() if count}


def flops_of_call(u: FlowMap, z: Latent, cond: Cond) -> int:
    """F: of one call without a graph."""
    t = torch.full((len(z),), 0.5, device=z.device)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        u(z, t, t, cond)
    return int(counter.get_total_flops())


class Counting(Protocol):
    def get_total_flops(self) -> int: ...


@define
class Meter:
    """Puts down what was counted since it last looked to the part that was running."""

    counter: Counting
    spent: Counter[str] = Factory(Counter)
    part: str = ""
    _seen: int = field(default=0, init=False)

    def settle(self) -> None:
        seen = int(self.counter.get_total_flops())
        self.spent[self.part] += seen - self._seen
        self._seen = seen

    @contextmanager
    def spending(self, part: str) -> Iterator[None]:
        self.settle()
        self.part, outer = part, self.part
        try:
            yield
        finally:
            self.settle()
            self.part = outer

    @contextmanager
    def watch(self, role: Role, u: FlowMap) -> Iterator[None]:
        """Name the calls of `u` that no strategy has named: the teacher's, the critic's scores."""
        alone = {"student": "guidance", "teacher": "teacher", "critic": "critic score", "forward_teacher": "teacher"}
        open_parts: list[Any] = []

        def enter(module: Any, arguments: Any) -> None:
            graph = torch.is_grad_enabled()
            own = graph or (role == "student" and self.part != "student forward")
            part = self.part if own else alone[role]
            if not graph and part == "rollout forward":
                part = "rollout"
            if own and role == "critic" and self.part == "rollout forward":  # `DistributionMatching.one_pass`
                part = "critic forward"
            open_parts.append(self.spending(part))
            open_parts[-1].__enter__()

        def leave(module: Any, arguments: Any, output: Any) -> None:
            open_parts.pop().__exit__(None, None, None)

        handles = u.register_forward_pre_hook(enter), u.register_forward_hook(leave)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def method(self, method: Method) -> Method:
        """`method` with its parts named; others, objectives may name themselves, by `flowmap.doing.spent_on`."""
        return evolve(
            method,
            updates=tuple(
                evolve(update, terms=tuple((weight, self._objective(term)) for weight, term in update.terms))
                for update in method.updates
            ),
        )

    def _objective(self, term: Objective) -> Objective:
        if isinstance(term, FlowMapMatching):
            role = "student" if term.role == "student" else "fine-tuned teacher"
            return _Named(self, role, evolve(term, derivative=_NamedDerivative(self, term.derivative)))
        if isinstance(term, DistributionMatching):
            return _Named(self, "rollout", evolve(term, rollout=_NamedRollout(self, "rollout forward", term.rollout)))
        if isinstance(term, CriticMatching):
            own = None if term.rollout is None else _NamedRollout(self, "critic rollout", term.rollout)
            return _Named(self, "critic", evolve(term, rollout=own))
        return _Named(self, type(term).__name__, term)


@frozen
class _Named:
    """An objective; what comes after it is its backward pass."""

    meter: Meter
    name: str
    objective: Any

    @property
    def needs(self) -> frozenset[Role]:
        needs: frozenset[Role] = self.objective.needs
        return needs

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        with adding(self.meter.spending), self.meter.spending(f"{self.name} forward"):
            loss: Loss = self.objective(nets, batch, rng, shared)
        self.meter.part = f"{self.name} backward"
        return loss


@frozen
class _NamedDerivative:
    meter: Meter
    derivative: Derivative

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        with self.meter.spending("derivative"):
            return self.derivative(u, z, t, r, v, cond)


@frozen
class _NamedRollout:
    meter: Meter
    name: str
    rollout: Rollout

    @property
    def within(self) -> Span:
        found: Span = getattr(self.rollout, "within", ALL)
        return found

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        with self.meter.spending(self.name):
            return self.rollout(u, noise, cond, rng)


def total(parts: Mapping[str, float]) -> float:
    return sum(parts.values())
