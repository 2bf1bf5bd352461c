"""`--set FIELD=VALUE`: a recipe with other values, which the values' own validators judge.

A field is named by its path, `stages.0.optimizer.lr`; `*` stands for any one name of it, `**` for any number of them.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from ..validators import listed, near, shown
from . import reading
from .errors import UsageError

if TYPE_CHECKING:
    from ..recipe import Recipe

Place: TypeAlias = tuple[str, ...]
OWN = ("name", "settings")
"""Of a recipe, for the command line itself."""
LONGEST = 80
HELP = (
    "a field of the recipe, such as stages.0.optimizer.lr=1e-4, 'stages.*.batch=8', data=LatentFolder:data/clips; * is "
    "any one name, ** any number of them; several may follow, and later ones see what earlier ones made"
)


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="settings", type=setting, nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help=HELP
    )


def setting(text: str) -> str:
    field, equals, _ = text.partition("=")
    if not equals or not all(field.split(".")):
        example = "must be FIELD=VALUE, such as stages.0.batch=8; the recipe's name comes before --set"
        raise argparse.ArgumentTypeError(f"{text!r}: {example}")
    return text


def replaced(settings: Sequence[str]) -> frozenset[str]:
    """The fields of the recipe that `settings` give another value as a whole."""
    return frozenset(field for field, _, _ in (text.partition("=") for text in settings) if field.isidentifier())


def applied(recipe: Recipe, settings: Sequence[str], told: list[str] | None = None) -> Recipe:
    """`recipe` with all `settings`, one after the other; a `UsageError` with all that is wrong with them.

    told: gets a line for each field that was set, with both values.
    """
    changed, wrong = recipe, list[str]()
    for text in settings:
        field, _, value = text.partition("=")
        try:
            for place in _places(changed, tuple(field.split("."))):
                before, kinds = _at(changed, place)
                now = reading.read(value, kinds, before)
                changed = _with(changed, place, now)
                if told is not None:
                    told.append(f"{'.'.join(place)} = {_said(now)}, was {_said(before)}")
        except (ValueError, TypeError) as error:
            wrong.append(f"--set {text}: {error.args[0] if error.args else error}")
    if wrong:
        raise UsageError(*wrong)
    return attrs.evolve(changed, settings=(*recipe.settings, *settings))


def _places(value: Any, pattern: Place) -> list[Place]:
    """Those that the pattern names, in the recipe's order; a ValueError where it names none."""
    if pattern[-1] == "**":
        raise ValueError("must end in a field's name")
    if not {"*", "**"} & {*pattern}:
        _at(value, pattern)
        return [pattern]
    found = [*dict.fromkeys(_matches(value, pattern))]
    if not found:
        raise ValueError(f"no field is called that{near(pattern[-1], [*_names(value)])}")
    return found


def _matches(value: Any, pattern: Place) -> Iterator[Place]:
    if not pattern:
        yield ()
        return
    first, *rest = pattern
    inner = _children(value)
    if first == "**":
        yield from _matches(value, tuple(rest))
    for name, child in inner.items():
        follows = pattern if first == "**" else tuple(rest)
        if first in ("*", "**", name):
            yield from ((name, *place) for place in _matches(child, follows))


def _names(value: Any) -> Iterator[str]:
    for name, child in _children(value).items():
        yield name
        yield from _names(child)


def _at(value: Any, place: Place) -> tuple[Any, reading.Kinds]:
    """What is there, and what may be there; a ValueError that says which names there are, where there is no such."""
    kinds = reading.Kinds()
    for depth, name in enumerate(place):
        inner, where = _children(value), ".".join(place[:depth]) or "the recipe"
        if not inner:
            raise ValueError(f"{where} is {shown(value)} and has no fields")
        if name not in inner:
            raise ValueError(f"{where} has no field {name!r}: must be {_listed([*inner])}{near(name, inner)}")
        kinds = reading.Kinds.of(value, name)
        value = inner[name]
    return value, kinds


def _listed(names: Sequence[str]) -> str:
    return listed(names) if len(names) <= 3 else f"one of {', '.join(names)}"


def _said(value: Any) -> str:
    text = repr(value)
    return text if attrs.has(type(value)) and len(text) <= LONGEST else shown(value)


def _children(value: Any) -> Mapping[str, Any]:
    """What a value of a recipe is made of, by the names that `--set` has for it."""
    from ..recipe import Recipe

    if attrs.has(type(value)):
        found = {f.alias: getattr(value, f.name) for f in attrs.fields(type(value)) if f.init}
        return {name: child for name, child in found.items() if not (isinstance(value, Recipe) and name in OWN)}
    if isinstance(value, Mapping):
        return {str(key): child for key, child in value.items()}
    if isinstance(value, (tuple, list)):
        return {str(key): child for key, child in enumerate(value)}
    return {}


def _with(value: Any, place: Place, new: Any) -> Any:
    """`value` made anew, with `new` at that place; what its class says against it is raised."""
    if not place:
        return new
    first, rest = place[0], place[1:]
    child = _with(_children(value)[first], rest, new)
    if attrs.has(type(value)):
        return attrs.evolve(value, **{first: child})
    if isinstance(value, Mapping):
        return {key: child if str(key) == first else old for key, old in value.items()}
    return tuple(child if str(key) == first else old for key, old in enumerate(value))
