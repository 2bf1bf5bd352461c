"""What a method needs, from its own value: `flowmap plugins --needs`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from ..method import Method


def needs(make: Callable[..., Method]) -> str:
    """`trains student; derivative CentralDifference; data: latents and conditions`, of the method with its defaults.

    Data of conditions alone still have latents, whose size is that of the samples; no value of them is used. What must
    be given to make it, where it has no defaults: `needs scores=`.
    """
    if missing := required(make):
        return f"needs {', '.join(f'{name}=' for name in missing)}"
    from .._types import Role

    method = make()
    roles = [role for role in get_args(Role) if role in method.needs | method.trains]
    parts = [f"trains {', '.join(role for role in roles if role in method.trains)}"]
    if called := [role for role in roles if role not in method.trains]:
        parts.append(f"calls {', '.join(called)}")
    parts += [f"derivative {name}" for name in dict.fromkeys(_derivatives(method))]
    parts += [f"adds to the {role}" for role in method.equips]
    parts.append(f"data: {'latents and conditions' if method.from_data else 'conditions alone'}")
    return "; ".join(parts)


def required(make: Callable[..., Any]) -> list[str]:
    """The arguments that it has no defaults for."""
    given = inspect.signature(make).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in given if one.default is one.empty and one.kind not in several]


def _derivatives(method: Method) -> Iterator[str]:
    """By the names of their classes; not of flow-map matching on the diagonal alone, which asks for none."""
    from .. import values
    from ..objectives.flow_map_matching import FlowMapMatching
    from ..times import Diagonal

    for update in method.updates:
        for _, term in update.terms:
            if not (isinstance(term, FlowMapMatching) and isinstance(term.times, Diagonal)):
                yield from (type(one).__name__ for one in values.found(term, "derivative"))
