"""The text of a setting as the value that a field takes: by the field's own types, else by those of what is there."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import attrs
from attrs import field, frozen

from ..validators import listed, near

WORDS = {"true": True, "false": False, "none": None}
MODULES = ("recipe", "data", "times", "derivative", "reweights", "guidance", "rollout")
"""Of the core's values that a text may name."""


@frozen
class Kinds:
    """What a field takes. types: classes; words: of a Literal; items: of a tuple's entries. Empty where nobody says."""

    types: frozenset[Any] = frozenset()
    words: frozenset[Any] = frozenset()
    items: Kinds | None = field(default=None)

    @classmethod
    def of(cls, owner: Any, name: str) -> Kinds:
        """Of the field `name` of an attrs value; of an entry of a row or a mapping, by what is there."""
        if not attrs.has(type(owner)):
            key = int(name) if isinstance(owner, (tuple, list)) else name
            return cls(frozenset({type(owner[key])}))
        attribute = next(f.name for f in attrs.fields(type(owner)) if f.alias == name)
        for base in type(owner).__mro__:
            if attribute in inspect.get_annotations(base):
                return cls.told(_resolved(inspect.get_annotations(base)[attribute], base))
        return cls()

    @classmethod
    def told(cls, annotation: Any) -> Kinds:
        origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (typing.Union, types.UnionType):
            each = [cls.told(one) for one in inner]
            items = next((one.items for one in each if one.items is not None), None)
            every, words = (frozenset().union(*(getattr(one, of) for one in each)) for of in ("types", "words"))
            return cls(every, words, items)
        if origin is typing.Literal:
            return cls(frozenset(), frozenset(inner))
        if isinstance(origin, type) and issubclass(origin, Sequence):
            return cls(frozenset({tuple}), items=cls.told(inner[0]) if inner else None)
        found = origin or annotation
        return cls(frozenset({found})) if isinstance(found, type) else cls()


def _resolved(annotation: Any, base: type) -> Any:
    """None where it names what is imported for types alone."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(vars(sys.modules[base.__module__])), {base.__name__: base})
    except (NameError, TypeError, AttributeError):
        return None


def read(text: str, kinds: Kinds, before: Any) -> Any:
    """The value that `text` stands for, in place of `before`. What is of no kind that fits is left to the validators.

    A ValueError for what can be known to be wrong here, such as a component that there is not.
    """
    if not kinds.types and not kinds.words:
        kinds = Kinds.told(type(before)) if before is not None else Kinds(frozenset({type(None), int, float, str}))
    word = text.strip().lower()
    if word in WORDS and type(WORDS[word]) in kinds.types:
        return WORDS[word]
    if text in kinds.words:
        return text
    if (number := _number(text, kinds.types)) is not None:
        return number
    if kinds.types & {tuple, list}:
        return _row(text, kinds.items, before)
    if made := _component(text, kinds.types):
        return made[0]
    if str in kinds.types or kinds.words or kinds.types & {int, float, bool}:
        return text if _number(text, frozenset({int, float})) is None or str in kinds.types else _plain(text)
    said = listed(sorted(kind.__name__ for kind in kinds.types if kind is not type(None))).replace("'", "")
    raise ValueError(f"must be a value of {said}, which a text cannot say: write a recipe file (`flowmap recipe NAME`)")


def _number(text: str, kinds: frozenset[Any]) -> int | float | None:
    found = _plain(text)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    if float in kinds:
        return float(found) if int not in kinds else found
    if int in kinds:
        return int(found) if found == found and abs(found) != float("inf") and found == int(found) else found
    return None


def _plain(text: str) -> Any:
    """A number or a row as Python writes it; the text itself, where it is neither."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _row(text: str, items: Kinds | None, before: Any) -> tuple[Any, ...]:
    """`1,2,4`, `(1, 2, 4)`, or one entry."""
    parts = [part.strip() for part in text.strip().removeprefix("(").removesuffix(")").split(",")]
    like = items or Kinds.told(type(before[0]) if isinstance(before, (tuple, list)) and before else str)
    return tuple(read(part, like, None) for part in parts if part)


def _component(text: str, kinds: frozenset[Any]) -> tuple[Any] | None:
    """`LatentFolder:data/clips`, `Ema`: a value of that class, of its first fields; a method or a backbone by name."""
    names = {kind.__name__ for kind in kinds}
    if "FlowMapSpec" in names:
        from ..plugins import PluginError, backbone

        try:
            return (backbone(text),)
        except PluginError as error:
            raise ValueError(str(error)) from None
    if "Method" in names:
        return (_method(text),)
    if not any(attrs.has(kind) or getattr(kind, "_is_protocol", False) for kind in kinds):
        return None
    name, colon, first = text.partition(":")
    there = {one.__name__: one for one in (*_known(), *(kind for kind in kinds if attrs.has(kind)))}
    if name not in there:
        fitting = sorted(n for n, one in there.items() if _fits(one, kinds))
        raise ValueError(f"there is no {name!r}: must be one of {', '.join(fitting)}{near(name, fitting)}")
    arguments = _arguments(there[name], first) if colon else ()
    try:
        return (there[name](*arguments),)
    except (ValueError, TypeError) as error:
        from .calls import mistakes

        raise ValueError("; ".join(mistakes(there[name], arguments, {}, error))) from None


def _arguments(kind: type, text: str) -> tuple[Any, ...]:
    """Of the first field; of all that must be given, parted by commas, where those are several."""
    fields = [f for f in attrs.fields(kind) if f.init and not f.kw_only]
    needed = max(1, len([f for f in fields if f.default is attrs.NOTHING]))
    parts = text.split(",", needed - 1)
    return tuple(read(part, Kinds.told(_resolved(f.type, kind)), None) for f, part in zip(fields, parts, strict=False))


def _method(text: str) -> Any:
    from ..plugins import PluginError, installed, named

    try:
        return named(installed(), "flowmap_methods", text)()
    except PluginError as error:
        raise ValueError(str(error)) from None


def _known() -> Sequence[type]:
    found = list[type]()
    for name in (f"flowmap.{name}" for name in MODULES):
        own = [one for one in vars(import_module(name)).values() if isinstance(one, type) and attrs.has(one)]
        found += [one for one in own if one.__module__.startswith(name) and not one.__name__.startswith("_")]
    return found


def _fits(one: type, kinds: frozenset[Any]) -> bool:
    """Whether values of a class are of these kinds, as far as a class tells: a protocol by its methods' names."""
    for kind in kinds:
        if getattr(kind, "_is_protocol", False):
            wanted = [n for n in dir(kind) if n == "__call__" or not n.startswith("_")]
            if wanted and all(callable(getattr(one, n, None)) for n in wanted):
                return True
        elif issubclass(one, kind):
            return True
    return False
