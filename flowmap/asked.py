"""Who asks which network for what it does not have, known before any is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from . import values
from ._types import Role
from .method import Method
from .model import FlowMapSpec, guided_twice
from .objectives import Guides, Networks, Objective, OnTrajectories, guides, taught_forward

SpecOf = Callable[[Role], FlowMapSpec]
"""What the network of a role is built from."""


def histories(methods: Sequence[Method], spec_of: SpecOf, forward: bool) -> list[str]:
    """Who asks a teacher that makes all frames at once about frames after a history, which a student in chunks has.

    forward: whether there is a forward teacher, `flowmap.objectives.taught`.
    """
    role: Role = "forward_teacher" if forward else "teacher"
    spec = spec_of(role)
    if not spec_of("student").takes_history("student") or spec.takes_history("student" if forward else "teacher"):
        return []
    must = f"{role}, {spec.about().name}, which makes all frames at once, about frames after a history: must be"
    return [
        f"stage {i} ({method.name}) asks the {must} the data's velocity, or a causal Recipe.forward_teacher"
        for i, method in enumerate(methods)
        if any(
            "student" in o.needs and taught_forward(o.needs) and not isinstance(o, OnTrajectories)
            for o in method.objectives
        )
    ]


def recorded(stages: Sequence[object], spec: FlowMapSpec) -> list[str]:
    """Who asks for chunks that are remembered by the calls that made them, of a student that keeps nothing of any."""
    if spec.records:
        return []
    name = spec.about().name
    return [
        f"stage {i} has history_noise = 'last', and the student, {type(spec).__name__}, {name}, keeps nothing of the "
        "call that makes a chunk: must be a number"
        for i in _last(stages)
    ]


def compressed(stages: Sequence[object], nets: Networks, frames: int) -> list[str]:
    """Who asks for them of the student that was built, where videos of so many frames do not allow it."""
    asking = _last(stages)
    why = nets["student"].unrecorded(frames) if asking else None
    return [] if why is None else [f"stage {i} has history_noise = 'last': {why}" for i in asking]


def _last(stages: Sequence[object]) -> list[int]:
    return [i for i, stage in enumerate(stages) if "last" in values.found(stage, "history_noise")]


def guidance(methods: Sequence[Method], evaluation: object, spec_of: SpecOf, forward: bool) -> list[str]:
    """Who asks a network for guidance that it has built in; the forward teacher where an objective follows that one.

    A student learns another guidance on data; a diffusion network that it was distilled into has no null branch.
    """
    asked: list[tuple[str, Mapping[Role, float]]] = [
        (f"stage {i} ({method.name})", {_whom(o, role, forward): w for role, w in guides([o]).items()})
        for i, method in enumerate(methods)
        for o in method.objectives
    ]
    asked += [("the evaluation", evaluation.guides)] if isinstance(evaluation, Guides) else []
    found = []
    for who, by_role in asked:
        for role, w in by_role.items():
            own = (spec := spec_of(role)).sampling()
            if role == "student" and own.kind != "euler":
                continue
            if (twice := guided_twice(own.guidance, w)) is not None:
                found.append(f"{who} guides the {role}, {spec.about().name}, which {twice}")
    return found


def _whom(objective: Objective, role: Role, forward: bool) -> Role:
    return "forward_teacher" if role == "teacher" and forward and taught_forward(objective.needs) else role
