"""What is wrong with a call that failed: every field at once, and names that are nearly right."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import attrs

from .. import validators
from ..validators import near, shown


def mistakes(
    function: Any,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    error: BaseException,
    names: Mapping[str, Any] = {},
) -> list[str]:
    """At least one sentence. names: of the module in which `error` was raised, when no call was."""
    if function is attrs.evolve and arguments and attrs.has(type(arguments[0])):
        old = {f.alias: getattr(arguments[0], f.name) for f in attrs.fields(type(arguments[0])) if f.init}
        function, arguments, named = type(arguments[0]), (), {**old, **named}
    signature = _signature(function)
    if signature is None or not isinstance(error, (ValueError, TypeError)):
        return [_of_python(error, names)]
    found = [*_arguments(function, signature, arguments, named)]
    known = {name: value for name, value in named.items() if _takes(signature, name)}
    found += _fields(function, signature, arguments, known)
    return [*dict.fromkeys(found)] or [_of_python(error, names)]


def _signature(function: Any) -> inspect.Signature | None:
    """Of functions and classes of flowmap, its plugins and recipes; others say for themselves what they want."""
    try:
        return inspect.signature(function) if callable(function) else None
    except (TypeError, ValueError):
        return None


def _arguments(
    function: Any, signature: inspect.Signature, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Iterator[str]:
    """Fields that there are not, and those that there must be."""
    name = getattr(function, "__name__", "the function")
    allowed = [p.alias for p in attrs.fields(function) if p.init] if _is_attrs(function) else [*signature.parameters]
    meant: set[str] = set()
    for field, value in named.items():
        if not _takes(signature, field):
            meant |= {*get_close_matches(field, allowed, 1)}
            listed = f"{', '.join(allowed)}{near(field, allowed)}"
            yield f"{name} has no field {field!r} (= {shown(value)}): must be one of {listed}"
    try:
        given = signature.bind_partial(*arguments, **{k: v for k, v in named.items() if _takes(signature, k)}).arguments
    except TypeError as error:
        yield f"{name}: {error}"
        return
    required = [p.name for p in signature.parameters.values() if p.default is p.empty and p.kind not in (2, 4)]
    if missing := [field for field in required if field not in given and field not in meant]:
        yield f"{name} needs {validators.listed(missing).replace(' or ', ' and ')}"


def _takes(signature: inspect.Signature, name: str) -> bool:
    parameters = signature.parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return True
    return name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY


def _fields(
    function: Any, signature: inspect.Signature, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Iterator[str]:
    """What validators say, of a class that is made or of the values that a function makes."""
    if _is_attrs(function):
        try:
            given = signature.bind_partial(*arguments, **named).arguments
        except TypeError:
            return
        yield from _refused(
            function.__new__(function), {f: given[f.alias] for f in attrs.fields(function) if f.alias in given}
        )
        return
    with attrs.validators.disabled():
        try:
            value = function(*arguments, **named)
        except Exception:
            return
    yield from _walk(value)


def _refused(instance: Any, values: Mapping[Any, Any]) -> Iterator[str]:
    for attribute, value in values.items():
        try:
            convert: Callable[[Any], Any] | None = attribute.converter
            value = value if convert is None else convert(value)
            if attribute.validator is not None:
                attribute.validator(instance, attribute, value)
        except Exception as error:
            yield _message(error)


def _walk(value: Any) -> Iterator[str]:
    if _is_attrs(type(value)):
        fields = {f: getattr(value, f.name) for f in attrs.fields(type(value)) if f.init}
        yield from _refused(value, {f: v for f, v in fields.items() if f.validator is not None})
        for child in fields.values():
            yield from _walk(child)
    elif isinstance(value, (tuple, list)):
        for child in value:
            yield from _walk(child)
    elif isinstance(value, Mapping):
        yield from _walk([*value.values()])


def _is_attrs(kind: Any) -> bool:
    return isinstance(kind, type) and attrs.has(kind)


def _message(error: BaseException) -> str:
    """A library's validator raises (message, attribute, what is allowed, value)."""
    return str(error.args[0]) if error.args else type(error).__name__


def _of_python(error: BaseException, names: Mapping[str, Any]) -> str:
    if isinstance(error, (ValueError, TypeError)) and not isinstance(error, UnicodeError):
        return _message(error)
    hint, text = "", str(error)
    if isinstance(error, AttributeError) and error.name is not None:
        hint = near(error.name, dir(error.obj))
    elif isinstance(error, NameError) and error.name is not None:
        hint = near(error.name, [*names])
    elif isinstance(error, ImportError) and (wanted := re.match(r"cannot import name '(\w+)'", text)):
        hint = near(wanted[1], dir(sys.modules.get(error.name or "")))
        text = re.sub(r" \(/.*\)$", "", text)
    return f"{type(error).__name__}: {text}{hint}"
