"""What is wrong with a call that failed: every field at once, and names that are nearly right."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import attrs

from .. import validators
from ..validators import near, shown
from .broken import broken


def mistakes(
    function: Any,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    error: BaseException,
    names: Mapping[str, Any] = {},
) -> list[str]:
    """At least one sentence. names: of the module in which `error` was raised, when no call was."""
    function, arguments, named = _evolved(function, arguments, named)
    signature = _signature(function)
    if signature is None or not isinstance(error, (ValueError, TypeError)):
        return [_of_python(error, names)]
    found = [*_arguments(function, signature, arguments, named)]
    known = {name: value for name, value in named.items() if _takes(signature, name)}
    found += _fields(function, signature, arguments, known)
    found = found or [_of_python(error, names)]
    if not _is_attrs(function):
        found = [_renamed(text, function, signature, arguments, known) for text in found]
    return [*dict.fromkeys(found)]


def beside(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[str]:
    """What is wrong with a call beside the arguments that are broken: sentences, or none."""
    function, arguments, named = _evolved(function, arguments, named)
    signature = _signature(function)
    if signature is None or not _ours(function):
        return []
    found = [*_arguments(function, signature, arguments, named)]
    if _is_attrs(function):
        found += _fields(function, signature, arguments, {k: v for k, v in named.items() if _takes(signature, k)})
    return [*dict.fromkeys(found)]


def _evolved(
    function: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """`attrs.evolve(value, ...)` as the call of the value's class that it stands for."""
    if function is not attrs.evolve or not arguments or not attrs.has(type(arguments[0])):
        return function, arguments, named
    old = {f.alias: getattr(arguments[0], f.name) for f in attrs.fields(type(arguments[0])) if f.init}
    return type(arguments[0]), (), {**old, **named}


def _ours(function: Any) -> bool:
    """Not Python's own: of those nothing is said that they have not said."""
    return getattr(function, "__module__", None) not in sys.stdlib_module_names | {"attr", None}


def _renamed(
    text: str, function: Any, signature: inspect.Signature, arguments: tuple[Any, ...], named: dict[str, Any]
) -> str:
    """`Exact.w = 0.5: must be ...` of what `forward(guidance=0.5)` makes, as `forward.guidance = 0.5: ...`."""
    found = re.match(r"\w+\.(?P<field>[\w +]+) = (?P<value>[^:]+): ", text)
    if found is None:
        return text
    name = getattr(function, "__name__", "the function")
    if {*re.findall(r"\w+", found["field"])} <= signature.parameters.keys():
        return f"{name}.{text.partition('.')[2]}"
    try:
        given = signature.bind_partial(*arguments, **named).arguments
    except TypeError:
        return text
    same = [parameter for parameter, value in given.items() if shown(value) == found["value"]]
    return f"{name}.{same[0]} = {text[found.start('value') :]}" if len(same) == 1 else text


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
            said = "" if broken(value) else f" (= {shown(value)})"
            yield f"{name} has no field {field!r}{said}: must be one of {listed}"
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
        yield from _refused(function, {f: given[f.alias] for f in attrs.fields(function) if f.alias in given})
        return
    with attrs.validators.disabled():
        try:
            value = function(*arguments, **named)
        except Exception:
            return
    yield from _walk(value)


def _refused(kind: Any, values: Mapping[Any, Any]) -> Iterator[str]:
    """What the validators of a class say of values of its fields; what is broken is not judged.

    A validator may look at other fields. Where one of those is refused itself, it is not there, and the validator that
    asks for it says nothing: else one mistake would be told twice, the second time wrongly.
    """
    instance = kind.__new__(kind)
    for attribute in attrs.fields(kind):
        with suppress(Exception):
            object.__setattr__(instance, attribute.name, _value(attribute, values))
    bad = [attribute for attribute in values if broken(values[attribute]) or _told_by(instance, attribute, values)]
    for attribute in bad:
        with suppress(AttributeError):
            object.__delattr__(instance, attribute.name)
    for attribute in bad:
        if not broken(values[attribute]) and (said := _told_by(instance, attribute, values)) is not None:
            yield said


def _value(attribute: Any, values: Mapping[Any, Any]) -> Any:
    """As the class would hold it; an error for what it cannot convert, or does not have by default."""
    value = values.get(attribute, attribute.default)
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        value = value.factory()
    if value is attrs.NOTHING or broken(value):
        raise ValueError
    convert: Callable[[Any], Any] | None = attribute.converter
    return value if convert is None else convert(value)


def _told_by(instance: Any, attribute: Any, values: Mapping[Any, Any]) -> str | None:
    """By the validator of a field; None where it has none, is content, or misses another field."""
    try:
        value = _value(attribute, values)
        if attribute.validator is not None:
            attribute.validator(instance, attribute, value)
    except (ValueError, TypeError) as error:
        return _message(error)
    except Exception:
        return None
    return None


def _walk(value: Any) -> Iterator[str]:
    if _is_attrs(type(value)):
        fields = {f: getattr(value, f.name) for f in attrs.fields(type(value)) if f.init}
        yield from _refused(type(value), fields)
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
