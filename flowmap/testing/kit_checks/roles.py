"""What student, teacher and critic must be to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias, cast

import attrs
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from ..._types import Batch, Rng, Role, Shared
from ...data import TensorData
from ...methods import anyflow
from ...model import FlowMapSpec
from ...objectives import Networks
from ...objectives.distribution_matching import DistributionMatching
from ...recipe import AdamW, Ema, Stage
from ...rollout import FlowMapBackwardSimulation
from ...training.loop import Trainer
from ..kit_helpers import ROLES, Skip, build, close, example, example_batch, fields, perturb, require, same, times

Gradients: TypeAlias = Mapping[str, Tensor | None]


def check_the_student_starts_as_the_teacher(spec: FlowMapSpec) -> None:
    """Lifting v(z, t) to u(z, t, r) must leave the diagonal as it was: the teacher here is not lifted."""
    nets, (z, c) = build(spec, "student", "teacher"), example(spec)
    for value in (0.9, 0.5, 0.1):
        (t,) = times(z, value)
        now, before = nets["student"](z, t, t, c), nets["teacher"](z, t, t, c)
        close(now, before, f"at t = r = {value} the fresh student is not the teacher")


def check_only_the_teacher_is_frozen(spec: FlowMapSpec) -> None:
    """A student with nothing to train is found out late; a trained teacher, or a shared tensor, never."""
    nets = build(spec)
    require(not nets["teacher"].trained(), "the teacher has something to train: freeze it in `build`")
    require(not any(p.requires_grad for p in build(spec, "teacher")["teacher"].parameters()), "the teacher needs grad")
    for role in ("student", "critic"):
        trained = nets[role].trained()
        require(trained, f"the {role} has nothing to train: see `FlowMap.trained`")
        require(all(p.requires_grad for p in trained.values()), f"what the {role} trains does not require gradients")
    both = {id(p) for p in nets["student"].trained().values()} & {id(p) for p in nets["critic"].trained().values()}
    require(not both, f"student and critic train {len(both)} tensors in common")


def check_a_thawed_teacher_trains_what_a_critic_trains(spec: FlowMapSpec) -> None:
    """A critic inherits a fine-tuned teacher by name."""
    nets = build(spec, "teacher", "critic")
    nets["teacher"].thaw()
    shapes = [{name: p.shape for name, p in nets[role].trained().items()} for role in ("teacher", "critic")]
    require(shapes[0] == shapes[1], f"a thawed teacher trains {_names(shapes[0])}; a critic {_names(shapes[1])}")


def check_roles_do_not_leak(spec: FlowMapSpec) -> None:
    """Roles that share weights must not move each other: the teacher least of all."""
    nets, (z, c) = build(spec), example(spec)
    t, r = times(z, 0.8, 0.3)

    def outputs() -> dict[Role, Tensor]:
        return {role: nets[role](z, t, r, c).detach() for role in ROLES}

    before = outputs()
    moving: tuple[Role, ...] = ("student", "critic")
    for seed, moved in enumerate(moving):
        perturb(nets[moved], seed)
        after = outputs()
        require(not torch.equal(after[moved], before[moved]), f"the {moved} does not change with what it trains")
        for role in sorted({*before} - {moved}):
            same(after[role], before[role], f"training the {moved} changes the {role}")
        before = after


def check_a_student_update_reaches_the_student_alone(spec: FlowMapSpec) -> None:
    """A gradient left on critic or teacher is added to their next step."""
    nets = build(spec)
    perturb(
        nets["critic"], 0
    )  # without a condition to guide by, a fresh critic is the teacher and there is no gradient
    _on_policy_backward(nets, spec)
    student = {id(p) for p in nets["student"].trained().values()}
    require(any(_reached(p) for p in nets["student"].trained().values()), "the student's update leaves it no gradient")
    for role in ("critic", "teacher"):
        others = {**dict(nets[role].named_parameters()), **nets[role].trained()}
        left = sorted(name for name, p in others.items() if id(p) not in student and _reached(p))
        require(not left, f"the student's update leaves a gradient on the {role}: {_names(left)}")


def check_checkpointing_leaves_the_gradient(spec: FlowMapSpec) -> None:
    """Recomputation must see the adapter, and the cache, that the forward pass saw: teacher and critic run between."""
    if "checkpointing" not in fields(spec):
        raise Skip(f"{type(spec).__name__} has no field `checkpointing`")
    plain, *recomputed = (_gradients(variant) for variant in _recomputing(spec))
    for gradients in recomputed:
        _compare(gradients, plain, "with checkpointing")


def check_replaying_leaves_the_gradient(spec: FlowMapSpec) -> None:
    """A rollout walked again in the backward pass must see the history, and the adapter, that it saw the first time."""
    variants = _recomputing(spec) if "checkpointing" in fields(spec) else [spec]
    plain = _gradients(variants[0])
    for variant in variants:
        _compare(_gradients(variant, replay=True), plain, "when each chunk is walked again")


def check_a_gradient_through_the_history_is_one_in_every_form(spec: FlowMapSpec) -> None:
    """Held, walked again with its history written anew, and in one call for all chunks; it is more than without."""
    u, (z, c) = build(spec, "student")["student"], example(spec)
    if len(u.chunks(z.shape[1])) == 1:
        raise Skip("all frames are generated in one chunk")
    held, without = _gradients(spec, history_grad=True), _gradients(spec)
    more = [name for name, g in held.items() if g is not None and not _same(without[name], g)]
    require(more, "no gradient reaches how a finished chunk is remembered: `extend` gives no graph")
    for variant in _recomputing(spec) if "checkpointing" in fields(spec) else [spec]:
        again = _gradients(variant, replay=True, history_grad=True)
        _compare(again, held, "through a history that is written again")
    if u.packed(z, c) is not None:
        _compare(_gradients(spec, history_grad="packed"), held, "in one call for all chunks")


def check_it_distils(spec: FlowMapSpec) -> None:
    """Two iterations of both stages, in micro-batches: finite, the student moves, the teacher does not."""
    nets, batch = build(spec), example_batch(spec, 4)
    x, c = batch.x, batch.cond
    t, r = times(x, 0.8, 0.3)
    start = {role: nets[role](x, t, r, c).detach() for role in ("student", "teacher")}
    data = TensorData(x, c, batch.null)
    w, teachers = _guidance(spec, batch, 3.0), _guidance(spec, batch, 4.0)
    on_policy = anyflow.on_policy(guidance=w, teacher_guidance=teachers, steps=(1, 2, 4))
    for number, method in enumerate((anyflow.forward(guidance=w), on_policy)):
        stage = Stage(method, steps=2, batch=4, micro=2, optimizer=AdamW(lr=1e-3), ema=Ema(0.5))
        trainer = Trainer(nets, stage, data, number=number)
        for iteration in range(stage.steps):
            for name, mean in trainer.step(iteration).items():
                bad = bool(mean.count > 0) and not math.isfinite(float(mean.value))
                require(not bad, f"{name} is {float(mean.value)} at iteration {iteration} of {method.name}")
        trainer.finish()
    after = {role: nets[role](x, t, r, c).detach() for role in ("student", "teacher")}
    require(after["student"].isfinite().all(), "the distilled student is not finite")
    require(not torch.equal(after["student"], start["student"]), "distillation does not change the student")
    same(after["teacher"], start["teacher"], "distillation changes the teacher")


def _on_policy_backward(nets: Networks, spec: FlowMapSpec, **how: Any) -> None:
    """The student's update of stage 2: forward through student, critic and teacher, then backward."""
    batch = example_batch(spec)
    matching = DistributionMatching(FlowMapBackwardSimulation((4,), **how), w=_guidance(spec, batch, 4.0))
    matching(nets, batch, Rng.seeded(0, 1), Shared()).value.backward()


def _guidance(spec: FlowMapSpec, batch: Batch, w: float) -> float:
    """None where there is nothing to compare with, or some is built in."""
    return w if batch.null and spec.sampling().guidance == 1.0 else 1.0


def _recomputing(spec: FlowMapSpec) -> list[Any]:
    """Without and with activation checkpointing, in each way that the spec has."""
    found = []
    for value in (False, True, "selective"):
        with suppress(ValueError, TypeError):
            found.append(attrs.evolve(cast(Any, spec), checkpointing=value))
    return found


def _gradients(spec: FlowMapSpec, **how: Any) -> Gradients:
    """Of the student's update of stage 2, over the whole rollout; how: of its rollout."""
    nets = build(spec)
    perturb(nets["student"], 0)
    perturb(nets["critic"], 1)
    try:
        _on_policy_backward(nets, spec, **how)
    except CheckpointError as error:
        raise AssertionError(
            "recomputation has tensors of other shapes than the forward pass: what changed?"
        ) from error
    return {name: p.grad for name, p in nets["student"].trained().items()}


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and torch.equal(one, other)


def _compare(again: Gradients, plain: Gradients, how: str) -> None:
    for name, g in plain.items():
        if g is not None:
            other = again[name]
            require(other is not None, f"{how} no gradient reaches {name}")
            close(torch.as_tensor(other), g, f"{how} the gradient of {name} is another", 1e-4)


def _reached(p: Tensor) -> bool:
    return p.grad is not None and bool(p.grad.any())


def _names(names: Iterable[str]) -> str:
    first, *rest = sorted(names) or ["nothing"]
    return f"{first} and {len(rest)} more" if rest else first
