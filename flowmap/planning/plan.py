"""plan(recipe) -> what a recipe will take: parameters, operations, memory, hours; before there are weights or a GPU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, get_args

import torch
from attrs import evolve, field, fields, frozen

from .. import validators
from .._types import Role
from ..doing import tell
from ..kernels import Float32
from ..method import Method
from ..methods.flow_matching import flow_matching
from ..model import FlowMap, Streamed
from ..objectives import Networks, equipped
from ..objectives.distribution_matching import CriticMatching, DistributionMatching
from ..recipe import Recipe, RecipeError, Stage
from ..training.ranks.context_groups import unsplit
from ..training.ranks.networks import precision, specs
from ..training.ranks.offload import offload, stays
from .counts import Kind, Ledger, Moment
from .draws import DRAWS, Tariff, drawn, mean
from .hollow import CPU, META, hollowed
from .samples import cond_of, data_of, sizes_of
from .scored import silent
from .shape import Shape, judged, shape
from .trace import Call, Traced, all_off_diagonal, replaced, trace

GIB = 2**30
HARDEST_OF = 64  # iterations, of which the one that costs most is traced
SLOWER: Mapping[Float32, float] = {"tf32": 2.0, "ieee": 989 / 67}  # an H100, by its published peaks
RESERVE = 2 * GIB  # for what torch's allocator does not see or cannot use: context, NCCL, workspaces, fragments


@frozen
class Machine:
    """gpus: how many, with so many bytes of `memory` each. tflops: of a GPU at its peak, in 10^12 operations a second.

    That is in bfloat16; float32: how it makes those of float32, as in `Kernels`. utilisation: the share of its peak
    that is reached. context: so many of them work on the same samples, each on a part of their tokens
    (`Distribution.context`). link: bytes a second from the host's memory, PCIe 4.0 with 16 lanes, `Recipe.offload`.
    """

    gpus: int = field(default=8, validator=validators.ge(1))
    memory: int = field(default=80 * GIB, validator=validators.ge(1))
    tflops: float = field(default=989.0, validator=validators.gt(0.0))
    utilisation: float = field(default=0.4, validator=[validators.gt(0.0), validators.le(1.0)])
    context: int = field(default=1, validator=validators.ge(1))
    float32: Float32 = field(default="ieee", validator=validators.in_(get_args(Float32)))
    link: float = field(default=25e9, validator=validators.gt(0.0))


@frozen
class StagePlan:
    """One stage. parts: operations of an iteration on the global batch, by part, the mean over its draws.

    samples: on a GPU at once, or on the GPUs of one context. ratios: to an iteration of plain flow matching of the same
    student; None where it has no pass on data whose cost would be known. scored: samples of an iteration that rewards
    judge, by what is done to them; of these neither operations nor memory are in it.
    """

    number: int
    stage: Stage
    parts: Mapping[str, float]
    traced: Traced
    samples: int
    ratio: float | None
    reference_ratio: float | None
    context: int = 1
    scored: Mapping[str, float] = field(factory=dict)

    @property
    def flops(self) -> float:
        return sum(self.parts.values())

    def peak(self, gpus: int, shape: Shape) -> dict[str, float]:
        """Bytes on each GPU by kind, at the fullest moment of an iteration."""
        lasting = {kind: self.traced.lasting[kind] / gpus for kind in LASTING}
        moment = self.moment(gpus)
        gradients = self.traced.accumulated if self._accumulates(gpus) else moment.held.get("gradients", 0)
        scale = min(1.0, self.local(gpus) / self.samples) / self.context
        passing = {kind: scale * moment.held.get(kind, 0) for kind in ("activations", "cache")}
        return {**lasting, "gradients": gradients / gpus, **passing, "gathered": shape.gathered(gpus)}

    def moment(self, gpus: int) -> Moment:
        """The fullest of an iteration."""
        if self._accumulates(gpus):
            return self.traced.highest
        moments = self.traced.highest, self.traced.fullest
        return max(moments, key=lambda m: m.passing() + m.held.get("gradients", 0) / gpus)

    def local(self, gpus: int) -> float:
        """Samples of an iteration on a GPU, which those of one context share."""
        return self.stage.batch * self.context / gpus

    def _accumulates(self, gpus: int) -> bool:
        """Whether gradients of earlier micro-batches are there all the time."""
        return self.local(gpus) > self.samples

    def hours(self, machine: Machine) -> float:
        """An operation in float32 takes as long as `SLOWER` ones in bfloat16. Weights come from the host while the GPU
        computes, inputs while it waits."""
        rate = machine.gpus * machine.tflops * 1e12 * machine.utilisation
        slower = 1.0 + (SLOWER[machine.float32] - 1.0) * self.traced.single
        weights, inputs = (moved / machine.link for moved in self.moved)
        return (max(slower * self.flops / rate, weights) + inputs) * self.stage.steps / 3600

    @property
    def moved(self) -> tuple[float, float]:
        """Bytes of weights, and of inputs, that come from the host in an iteration, as many more than in the traced one
        as it has operations."""
        times = self.flops / sum(self.traced.parts.values())
        return times * self.traced.weights_moved, times * self.traced.inputs_moved


LASTING: tuple[Kind, ...] = ("weights", "adapters", "optimiser", "average")


@frozen
class Plan:
    recipe: Recipe
    machine: Machine
    shape: Shape
    stages: tuple[StagePlan, ...]

    def peak(self, gpus: int) -> float:
        """Bytes, of the stage that needs most or of the end, with what is held back."""
        stages = (sum(stage.peak(gpus, self.shape).values()) for stage in self.stages)
        return max(*stages, self.shape.end) + RESERVE

    @property
    def needs(self) -> float:
        """Bytes, of each of its GPUs."""
        return self.peak(self.machine.gpus)

    @property
    def fits(self) -> bool:
        return self.machine.gpus in self.worlds and self.needs <= self.machine.memory

    @property
    def worlds(self) -> list[int]:
        """The numbers of GPUs over which every global batch divides, a context of them for a sample."""
        common = math.gcd(*(stage.stage.batch for stage in self.stages))
        return [n * self.machine.context for n in range(1, common + 1) if common % n == 0]

    @property
    def smallest(self) -> int | None:
        return next((n for n in self.worlds if self.peak(n) <= self.machine.memory), None)


def plan(recipe: Recipe, machine: Machine = Machine(), *, like: Plan | None = None) -> Plan:
    """Runs a step of each stage at its real size, without data in any tensor that weighs something.

    like: a plan of a recipe that this one was made of by `evolve`. A stage in which nothing differs is not run again.
    """
    for role, equip in recipe.equips.items():
        if not getattr(equip, "as_flow_map", False):
            told = f"this recipe equips the {role} with {type(equip).__name__}, which look into the network"
            raise RecipeError(f"{told}: that has no plan yet")
    if said := unsplit(recipe, machine.context) + stays(recipe, machine.gpus):
        raise RecipeError("\n".join(said))
    known = {} if like is None or not _same_networks(like.recipe, recipe) else _same_stages(like, recipe, machine)
    if like is not None and len(known) == len(recipe.stages):
        return Plan(recipe, machine, like.shape, tuple(known.values()))
    frames, sizes = sizes_of(recipe)
    nets = networks(recipe, precision(recipe))
    learning = equipped(nets, recipe.equips, data_of(recipe, 1, sizes).batch([0]))
    stages = tuple(
        known.get(number) or _stage(recipe, learning, machine, number, frames, sizes)
        for number in range(len(recipe.stages))
    )
    return Plan(recipe, machine, shape(recipe, nets), stages)


def _same_networks(one: Recipe, other: Recipe) -> bool:
    """Built of the same values for the same roles, on the same data."""
    same = all(getattr(one, a.name) is getattr(other, a.name) for a in fields(Recipe) if a.name != "stages")
    return same and (one.roles, one.trains) == (other.roles, other.trains)


def _same_stages(like: Plan, recipe: Recipe, machine: Machine) -> dict[int, StagePlan]:
    found = zip(like.stages, recipe.stages, strict=True)
    same = (old for old, stage in found if old.stage is stage and old.samples == _samples(stage, machine))
    return {old.number: evolve(old, context=machine.context) for old in same}


def networks(recipe: Recipe, dtype: torch.dtype) -> Networks:
    """All that a run of the recipe builds, of their real sizes, hollow; a teacher for the evaluation among them."""
    nets: dict[Role, FlowMap] = {}
    try:
        for spec, of in specs(recipe, judged(recipe)):
            with nullcontext() if isinstance(spec, Streamed) else META:  # what is streamed has tables with numbers
                nets |= spec.outline().build(of, device=META, dtype=dtype)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if "teacher" in recipe.trains:
        with META:
            nets["teacher"].thaw()
    hollowed(nets.values())
    for _, of in specs(recipe, judged(recipe)) if recipe.offload is not None else ():
        offload({role: nets[role] for role in of}, recipe.offload, CPU)  # type: ignore[arg-type]
    return nets


def reference(method: Method) -> Method:
    """`method` with the calls of AnyFlow's reference code, arXiv:2605.13724: a difference for every sample, which on
    the diagonal is multiplied by t - r = 0, and a rollout for the critic."""
    rollouts = [o.rollout for u in method.updates for _, o in u.terms if isinstance(o, DistributionMatching)]

    def own(objective: Any) -> Any:
        alone = isinstance(objective, CriticMatching) and objective.rollout is None and rollouts
        if isinstance(objective, DistributionMatching):
            return evolve(objective, one_pass=False)
        return evolve(objective, rollout=rollouts[0], one_pass=False) if alone else objective

    return replaced(all_off_diagonal(method), own)


def _samples(stage: Stage, machine: Machine) -> int:
    """At once, on a GPU or on those of one context."""
    return min(stage.micro or stage.batch, max(1, stage.batch * machine.context // machine.gpus))


def _stage(
    recipe: Recipe, nets: Networks, machine: Machine, number: int, frames: int, sizes: Mapping[str, tuple[int, ...]]
) -> StagePlan:
    seed, text, scored = recipe.seed, frozenset(sizes) - {"x"}, Counter[str]()
    stage = evolve(recipe.stages[number], method=silent(recipe.stages[number].method, scored))
    tell(f"planning stage {number} ({stage.method.name}), of {len(recipe.stages)}")
    samples = _samples(stage, machine)
    hardest = evolve(stage, method=all_off_diagonal(stage.method), batch=samples, micro=None)
    length = drawn(hardest, nets, frames, text, _by_frames, seed, number, HARDEST_OF)
    iteration = max(range(HARDEST_OF), key=lambda i: sum(length[i].values()))
    found = trace(hardest, nets, data_of(recipe, samples, sizes), seed, number, iteration)
    tariff = Tariff(dict(found.prices), lambda call: _ask(recipe, nets, call, sizes, samples))

    def parts(method: Method) -> dict[str, float]:
        scored.clear()
        forward = mean(drawn(evolve(stage, method=method), nets, frames, text, tariff, seed, number, DRAWS))
        return {**forward, **{f"{name} backward": cost for name, cost in _backward(found.parts, forward)}}

    own, ratio, theirs = parts(stage.method), None, None
    judged = {name: count / DRAWS for name, count in scored.items() if count}
    if "student backward" in found.parts:
        plain = sum(parts(flow_matching(role="student")).values())
        ratio, theirs = sum(own.values()) / plain, sum(parts(reference(stage.method)).values()) / plain
    own_stage = recipe.stages[number]
    return StagePlan(number, own_stage, own, found, samples, ratio, theirs, machine.context, judged)


def _backward(traced: Mapping[str, float], forward: Mapping[str, float]) -> list[tuple[str, float]]:
    """A backward pass costs in proportion to the forward pass before it."""
    names = [part.removesuffix(" forward") for part in forward if part.endswith(" forward")]
    return [(n, forward[f"{n} forward"] * traced[f"{n} backward"] / traced[f"{n} forward"]) for n in names]


def _by_frames(call: Call) -> float:
    """A rough price, to find the iteration that costs most."""
    return call.frames + 0.5 * (call.history * (not call.kept) + call.past)


def _ask(recipe: Recipe, nets: Networks, call: Call, sizes: Mapping[str, tuple[int, ...]], samples: int) -> float:
    """The operations a sample of a call that the traced step did not make, with as many: what is made once a call, such
    as a weight with its adapters, is shared by them."""
    if call.what != "forward" or call.past:
        raise RecipeError(f"no price is known of {call}: the step that was traced makes no such call")
    _, *rest = sizes["x"]
    cond = cond_of(recipe.spec_of(call.role), samples, sizes)
    if call.history:
        cond["history"] = torch.zeros(samples, call.history, *rest)
    half, z, u = torch.full((samples,), 0.5), torch.zeros(samples, call.frames, *rest), nets[call.role]
    with torch.no_grad():
        kept = u.keeping(torch.arange(samples)) if call.kept else None
        if kept is not None:
            u(z, half, half, cond, kept)
        with Ledger() as ledger:
            u(z, half, half, cond, kept)
    return ledger.flops / samples
