"""What the fields of a value must be, under the names that attrs has for it.

Each error is one sentence, `AdamW.lr = 0: must be > 0`, and types are checked too: a bound that is a whole number asks
for whole numbers, and one with a point for any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from operator import ge as _ge
from operator import gt as _gt
from operator import le as _le
from operator import lt as _lt
from types import FunctionType, MethodType
from typing import Any, TypeAlias

from attrs import Attribute, validators

Validator: TypeAlias = Callable[[Any, "Attribute[Any]", Any], Any]


def optional(validator: Validator) -> Validator:
    return validators.optional(validator)


def and_(*each: Validator) -> Validator:
    return validators.and_(*each)


def gt(bound: float) -> Validator:
    return _bound(bound, _gt, ">")


def ge(bound: float) -> Validator:
    return _bound(bound, _ge, ">=")


def lt(bound: float) -> Validator:
    return _bound(bound, _lt, "<")


def le(bound: float) -> Validator:
    return _bound(bound, _le, "<=")


def _bound(bound: float, holds: Callable[[Any, Any], bool], sign: str) -> Validator:
    whole = isinstance(bound, int)
    kind = Integral if whole else Real

    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        numeric = isinstance(value, kind) and not isinstance(value, bool)
        if not numeric or not holds(value, bound):
            what = "" if numeric else "a whole number " if whole else "a number "
            raise wrong(instance, attribute, value, f"must be {what}{sign} {bound:g}", kind=numeric)

    return check


def in_(options: Collection[Any]) -> Validator:
    """One of `options`, and the nearest, where words are chosen from."""

    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if value not in options:
            raise wrong(instance, attribute, value, f"must be {listed(options)}{near(value, options)}")

    return check


def instance_of(kind: type) -> Validator:
    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise wrong(instance, attribute, value, f"must be {article(kind.__name__)}{_call(value)}", kind=False)

    return check


def min_len(length: int) -> Validator:
    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if len(value) < length:
            raise wrong(instance, attribute, value, f"must have at least {length}")

    return check


def is_callable() -> Validator:
    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if not callable(value):
            raise wrong(instance, attribute, value, "must be a function", kind=False)

    return check


def matches_re(pattern: str) -> Validator:
    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise wrong(instance, attribute, value, f"must match {pattern}")

    return check


def wrong(instance: Any, attribute: Attribute[Any], value: Any, must: str, *, kind: bool = True) -> Exception:
    """The error of a field; a TypeError where its `kind` is not even right."""
    text = f"{type(instance).__name__}.{attribute.alias} = {shown(value)}: {must}"
    return ValueError(text) if kind else TypeError(text)


def near(name: object, options: Collection[Any]) -> str:
    """`; did you mean 'cosine'?`, or nothing."""
    found = get_close_matches(name, [o for o in options if isinstance(o, str)], 1) if isinstance(name, str) else []
    return f"; did you mean {found[0]!r}?" if found else ""


def listed(options: Collection[Any]) -> str:
    """`'a', 'b' or 'c'`; a long row by its ends."""
    if isinstance(options, range):
        return f"{options[0]} to {options[-1]}"
    told = [repr(option) for option in options]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} or {told[-1]}"


def counted(n: int, what: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def shown(value: object, most: int = 80) -> str:
    """A value in a sentence: numbers, words and short rows as they are written, others by their type."""
    if isinstance(value, (FunctionType, MethodType, type)):
        return value.__qualname__
    plain = value is None or isinstance(value, (bool, int, float, str, Real))
    row = isinstance(value, Sequence) and all(isinstance(v, (bool, int, float, str)) for v in value)
    text = repr(value)
    return text if (plain or row) and len(text) <= most else article(type(value).__name__)


def article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _call(value: object) -> str:
    return f"; call it: {value.__qualname__}(...)" if isinstance(value, (FunctionType, MethodType, type)) else ""
