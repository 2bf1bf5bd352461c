"""A recipe is a value: which backbone, which stages on which data, and how the result is judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import attrs
from attrs import field, frozen

from . import asked, validators, values
from ._types import Role
from .data import Data, Source, lacking
from .experts import too_few_steps
from .method import Method
from .model import FlowMapSpec
from .objectives import Equip, Networks, united
from .recomputing import Offload, offloaded
from .times import share

positive = validators.gt(0.0)
_spec = validators.optional(validators.instance_of(FlowMapSpec))


class RecipeError(ValueError):
    """The recipe cannot be run; nothing was started. errors: each a sentence."""

    def __init__(self, *errors: str) -> None:
        self.errors = errors
        many = "".join(f"\n  {error}" for error in errors)
        super().__init__(errors[0] if len(errors) == 1 else f"{len(errors)} errors:{many}")


def _roles(value: Mapping[Role, AdamW] | AdamW) -> Mapping[Role, AdamW] | AdamW:
    return dict(value) if isinstance(value, Mapping) else value


def _tuple(each: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(each) if isinstance(each, Iterable) else each


def _below_one(instance: Any, attribute: Any, betas: Any) -> None:
    good = isinstance(betas, (tuple, list)) and len(betas) == 2
    if not (good and all(isinstance(b, (int, float)) and 0 <= b < 1 for b in betas)):
        raise validators.wrong(instance, attribute, betas, "must be two numbers, each at least 0 and below 1")


def _by_role(instance: Any, attribute: Any, optimizer: Any) -> None:
    """An `AdamW` for all, or one for each of some roles."""
    if isinstance(optimizer, AdamW):
        return
    if not isinstance(optimizer, Mapping):
        must = "must be an AdamW, or one by role, such as {'student': AdamW(...)}"
        raise validators.wrong(instance, attribute, optimizer, must, kind=False)
    roles = ("student", "teacher", "critic")
    for role, settings in optimizer.items():
        if role not in roles:
            must = f"must be {validators.listed(roles)}{validators.near(role, roles)}"
            raise ValueError(f"Stage.optimizer has an entry for {role!r}: {must}")
        if not isinstance(settings, AdamW):
            raise TypeError(f"Stage.optimizer[{role!r}] = {validators.shown(settings)}: must be an AdamW")


def _data(instance: Any, attribute: Any, data: Any) -> None:
    if data is not None and (wrong := not_data("Recipe.data", data)) is not None:
        raise TypeError(wrong)


def not_data(what: str, data: object) -> str | None:
    """What is wrong with what is given as data; None if nothing is."""
    if isinstance(data, (Data, Source)):
        return None
    a = validators.article(type(data).__name__)
    return f"{what} is {a}: must have `batch(index)` and a length, or `load(...)`"


def absent(value: object) -> list[str]:
    """What a network's spec or data lacks on the disk, in sentences; nothing is loaded."""
    if not isinstance(value, FlowMapSpec):
        return lacking(value)
    try:
        value.validate()
    except ValueError as error:
        return [str(error)]
    return []


Precision: TypeAlias = Literal["float32", "bfloat16"]


@frozen
class AdamW:
    """AdamW with a linear warm-up of `warmup` steps, then constant, or down to `lr * floor` along a cosine.

    clip: global gradient norm. The defaults are AnyFlow's stages 0 and 1 but for their
    warm-up of 1000, arXiv:2605.13724.
    """

    lr: float = field(default=5e-5, validator=positive)
    betas: tuple[float, float] = field(default=(0.9, 0.95), validator=_below_one)
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
    optimizer: Mapping[Role, AdamW] | AdamW = field(default=AdamW(), converter=_roles, validator=_by_role)
    ema: Ema | None = field(default=Ema(), validator=validators.optional(validators.instance_of(Ema)))

    def __attrs_post_init__(self) -> None:
        if missing := sorted(role for role in self.method.trains if self.optimizer_of(role) is None):
            raise ValueError(f"Stage.optimizer has no entry for {missing}, which {self.method.name} trains")

    def optimizer_of(self, role: Role) -> AdamW | None:
        return self.optimizer if isinstance(self.optimizer, AdamW) else self.optimizer.get(role)


@runtime_checkable
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

    backbone: of the student. teacher: of the teacher, the backbone by default. critic: of the critic, the teacher's by
    default; a large teacher can judge a small student with a small critic. forward_teacher: its student, causal, is the
    teacher of objectives that follow one's trajectories, `flowmap.objectives.taught`. Roles of equal specs are built
    together, so that they may share weights. data: the batches, or where they come from. evaluation: what judges the
    student once it is there. dtype: of frozen weights and of their forward passes; all else is float32. save_dtype: of
    the student on disk; bfloat16 loses a part of the training, which the run measures. offload: to the host's memory,
    of a run in one process; no number changes. name, settings: what the command line knows it by, and what it changed.
    """

    backbone: FlowMapSpec = field(validator=validators.instance_of(FlowMapSpec))
    stages: tuple[Stage, ...] = field(converter=_tuple)
    teacher: FlowMapSpec | None = field(default=None, validator=_spec)
    critic: FlowMapSpec | None = field(default=None, validator=_spec)
    forward_teacher: FlowMapSpec | None = field(default=None, validator=_spec, kw_only=True)
    data: Data | Source | None = field(default=None, validator=_data)
    evaluation: Evaluator | None = field(default=None, validator=validators.optional(validators.instance_of(Evaluator)))
    seed: int = field(default=0, validator=validators.ge(0))
    dtype: Precision = field(default="float32", validator=validators.in_(("float32", "bfloat16")))
    save_dtype: Precision = field(default="float32", validator=validators.in_(("float32", "bfloat16")))
    name: str = field(default="", validator=validators.instance_of(str))
    settings: tuple[str, ...] = field(default=(), converter=_tuple)
    offload: Offload | None = field(default=None, validator=offloaded, kw_only=True)

    @stages.validator
    def _only_stages(self, attribute: Any, stages: Any) -> None:
        if not isinstance(stages, tuple):
            must = "must be a row of them, such as (Stage(...),)"
            raise TypeError(f"Recipe.stages is {validators.article(type(stages).__name__)}: {must}")
        if not stages:
            raise ValueError("Recipe.stages = (): must have at least 1")
        for i, stage in enumerate(stages):
            if not isinstance(stage, Stage):
                raise TypeError(f"Recipe.stages[{i}] is {validators.article(type(stage).__name__)}: must be a Stage")

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
        return frozenset[Role]().union(*(s.method.calls(self.forward_teacher is not None) for s in self.stages))

    def spec_of(self, role: Role) -> FlowMapSpec:
        """What the network of a role is built from."""
        teacher = self.teacher or self.backbone
        others = {"critic": self.critic or teacher, "forward_teacher": self.forward_teacher or teacher}
        return {"student": self.backbone, "teacher": teacher, **others}[role]

    @property
    def specs(self) -> tuple[FlowMapSpec, ...]:
        """Of the roles, each once, the student's first."""
        each = [self.spec_of(role) for role in get_args(Role)]
        return tuple(spec for i, spec in enumerate(each) if spec not in each[:i])

    @property
    def equips(self) -> Mapping[Role, Equip]:
        """What the stages' objectives make of networks before training, by role."""
        return united("Recipe.stages", (stage.method.equips for stage in self.stages))

    @property
    def shifts(self) -> frozenset[float]:
        """Of the times that the stages train at."""
        return frozenset(values.found(self.stages, "shift"))

    @property
    def result(self) -> Role:
        """What comes out: the student; the teacher of a recipe that has no student."""
        return "student" if "student" in self.roles else "teacher"

    def wrong(self) -> tuple[str, ...]:
        """All that can be known to be wrong without loading anything, each in a sentence."""
        found = list[str]()
        for spec in self.specs:
            found += absent(spec)
        unasked = self.forward_teacher is not None and "forward_teacher" not in self.roles
        found += ["Recipe.forward_teacher: no objective follows a teacher's trajectories: must be None"] * unasked
        if not found:
            methods, forward = [stage.method for stage in self.stages], self.forward_teacher is not None
            found += asked.histories(methods, self.spec_of, forward)
            found += asked.recorded(self.stages, self.backbone)
            found += asked.guidance(methods, self.evaluation, self.spec_of, forward)
            found += too_few_steps(self.backbone.boundary, self.evaluation)
        found += absent(self.data)
        return tuple(dict.fromkeys(found))

    def validate(self) -> None:
        """Raise a `RecipeError` with all that is `wrong`."""
        if found := self.wrong():
            raise RecipeError(*found)

    def capped(self, steps: int | None) -> Recipe:
        """The same, every stage at most `steps` long and a quick evaluation: a trial."""
        if steps is None:
            return self
        if steps < 1:
            raise ValueError(f"steps = {steps}: must be at least 1")
        stages = (attrs.evolve(stage, steps=min(stage.steps, steps)) for stage in self.stages)
        return attrs.evolve(self, stages=tuple(stages), evaluation=self.evaluation and self.evaluation.quick())


def describe(value: Any) -> Any:
    """A value as JSON: components by type and field, tensors by shape and hash, so that a run says what it did.

    What nothing tells from others of its type is `<its type>`; a `RecipeError` where a function holds such a value.
    """
    return _told(value, strict=False)


def digest(recipe: Recipe) -> str:
    """sha256 of what is trained: a checkpoint of another recipe is not resumed. What only comes after is left out.

    A `RecipeError` where it holds what nothing tells from others of its type. Data may: their fingerprint is compared.
    """
    trained = attrs.evolve(recipe, evaluation=None, name="", data=None, save_dtype="float32", settings=(), offload=None)
    described = _told(trained, strict=True)
    del described["settings"], described["offload"]  # as it was told before there were such fields
    described["data"] = describe(recipe.data)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _told(value: Any, strict: bool) -> Any:
    try:
        return values.told(value, type(value).__name__, strict)
    except values.UnknownValueError as error:
        raise RecipeError(str(error)) from None
