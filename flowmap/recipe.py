"""A recipe is a value: which backbone, which stages on which data, and how the result is judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, Protocol

import attrs
from attrs import field, frozen, validators
from torch import Tensor

from ._types import Role
from .data import Data, Source
from .method import Method
from .model import FlowMapSpec, sha256
from .objectives import Equip, Networks, united
from .times import share

positive = validators.gt(0.0)


def _roles(value: Mapping[Role, AdamW] | AdamW) -> Mapping[Role, AdamW] | AdamW:
    return value if isinstance(value, AdamW) else dict(value)


def _tuple(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    return tuple(stages)


@frozen
class AdamW:
    """AdamW with a linear warm-up of `warmup` steps, then constant, or down to `lr * floor` along a cosine.

    clip: global gradient norm. The defaults are AnyFlow's stages 0 and 1 but for their
    warm-up of 1000, arXiv:2605.13724.
    """

    lr: float = field(default=5e-5, validator=positive)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = field(default=0.0, validator=validators.ge(0.0))
    warmup: int = field(default=0, validator=validators.ge(0))
    schedule: Literal["constant", "cosine"] = field(
        default="constant", validator=validators.in_(("constant", "cosine"))
    )
    floor: float = field(default=0.0, validator=share)
    clip: float = field(default=1.0, validator=positive)


@frozen
class Ema:
    """A float32 average of what is trained: until step `start` a copy of the weights, then of decay `decay`."""

    decay: float = field(default=0.999, validator=share)
    start: int = field(default=1000, validator=validators.ge(0))


@frozen
class Stage:
    """`steps` iterations of a method on global batches of `batch` samples.

    micro: the most samples in one forward pass; gradients are accumulated over ceil(batch / micro) of them.
    optimizer: of every trained role, or by role. ema: of student or teacher; the stage ends with the average in place.
    """

    method: Method = field(validator=validators.instance_of(Method))
    steps: int = field(validator=validators.ge(1))
    batch: int = field(default=32, validator=validators.ge(1))
    micro: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    optimizer: Mapping[Role, AdamW] | AdamW = field(default=AdamW(), converter=_roles)
    ema: Ema | None = Ema()

    def __attrs_post_init__(self) -> None:
        if missing := sorted(role for role in self.method.trains if self.optimizer_of(role) is None):
            raise ValueError(f"Stage.optimizer has no entry for {missing}, which {self.method.name} trains")

    def optimizer_of(self, role: Role) -> AdamW | None:
        return self.optimizer if isinstance(self.optimizer, AdamW) else self.optimizer.get(role)


class Evaluator(Protocol):
    """Judges a student beside its teacher; a value, like everything in a recipe."""

    def __call__(self, nets: Networks, backbone: FlowMapSpec, out: Path) -> None:
        """Write what was found under `out`: plots, tables, samples. `nets` has student and teacher."""

    def written(self, out: Path) -> bool:
        """Whether this very evaluation is there already, whole."""

    def quick(self) -> Evaluator:
        """A trial, as small as makes sense."""


@frozen
class Recipe:
    """What `distill` does.

    teacher: where teacher and critic come from when not the backbone. data: the batches, or where they come from.
    evaluation: what judges the student once it is there. name: what the command line knows the recipe by.
    """

    backbone: FlowMapSpec = field(validator=validators.instance_of(FlowMapSpec))
    stages: tuple[Stage, ...] = field(converter=_tuple, validator=validators.min_len(1))
    teacher: FlowMapSpec | None = field(
        default=None, validator=validators.optional(validators.instance_of(FlowMapSpec))
    )
    data: Data | Source | None = None
    evaluation: Evaluator | None = None
    seed: int = 0
    name: str = ""

    @stages.validator
    def _only_stages(self, attribute: Any, stages: tuple[Any, ...]) -> None:
        for i, stage in enumerate(stages):
            if not isinstance(stage, Stage):
                raise TypeError(f"Recipe.stages[{i}] is a {type(stage).__name__}: must be a Stage")

    def __attrs_post_init__(self) -> None:
        if self.evaluation is not None and self.result != "student":
            raise ValueError("Recipe.evaluation judges a student, but no stage has one: leave it out")
        _ = self.equips  # raises where stages disagree

    @property
    def trains(self) -> frozenset[Role]:
        return frozenset[Role]().union(*(stage.method.trains for stage in self.stages))

    @property
    def roles(self) -> frozenset[Role]:
        """The networks that the stages call or train."""
        return frozenset[Role]().union(*(stage.method.needs | stage.method.trains for stage in self.stages))

    @property
    def equips(self) -> Mapping[Role, Equip]:
        """What the stages' objectives make of networks before training, by role."""
        return united("Recipe.stages", (stage.method.equips for stage in self.stages))

    @property
    def result(self) -> Role:
        """What comes out: the student; the teacher of a recipe that has no student."""
        return "student" if "student" in self.roles else "teacher"

    def capped(self, steps: int | None) -> Recipe:
        """The same, every stage at most `steps` long and a quick evaluation: a trial."""
        if steps is None:
            return self
        if steps < 1:
            raise ValueError(f"steps = {steps}: must be at least 1")
        stages = tuple(attrs.evolve(stage, steps=min(stage.steps, steps)) for stage in self.stages)
        evaluation = None if self.evaluation is None else self.evaluation.quick()
        return attrs.evolve(self, stages=stages, evaluation=evaluation)


def describe(value: Any) -> Any:
    """A value as JSON: components by type and field, tensors by shape and hash, so that a run says what it did."""
    if attrs.has(type(value)):
        fields = {f.name: describe(getattr(value, f.name)) for f in attrs.fields(type(value)) if f.init and f.repr}
        if isinstance(value, FlowMapSpec) and (fingerprint := value.fingerprint()) is not None:
            fields["fingerprint"] = fingerprint
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [describe(v) for v in value]
    if isinstance(value, Tensor):
        return {"type": "torch.Tensor", "shape": list(value.shape), "sha256": sha256({"": value})}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"


def digest(recipe: Recipe) -> str:
    """sha256 of what a recipe does: a checkpoint of another recipe is not resumed. Name and evaluation are left out."""
    described = describe(attrs.evolve(recipe, evaluation=None, name=""))
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
