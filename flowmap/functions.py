"""Functions as values of a recipe: what tells one from another.

A function at the top of a module is what its name says. Of lambdas, and of functions that another one made, there may
be many by one name: of these the code counts, too, and what they hold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

from torch import nn

from .model import sha256

Describe = Callable[[Any], Any]
ADDRESS = re.compile(r"\bat 0x[0-9a-f]+|<[\w.]+ object\b")
_within: list[FunctionType] = []  # those that are being described: a function may hold itself


class UnknownValueError(ValueError):
    """A function holds a value that nothing tells from others of its type."""


def function(f: FunctionType, describe: Describe) -> Any:
    """The name of f as a string; with its code and what it holds where the name does not tell it from others.

    The same in every process, of one minor version of Python: code differs between them. What f reads of its module
    counts where it is a plain value or a function of this kind; another module's is looked up by name.
    """
    name = f"{f.__module__}.{f.__qualname__}"
    if ("<" not in f.__qualname__ and f.__closure__ is None) or any(f is other for other in _within):
        return name
    _within.append(f)
    try:
        return {
            "type": "function",
            "name": name,
            "code": hashlib.sha256(repr(_code(f.__code__)).encode()).hexdigest(),
            "holds": {key: _held(f"{name} holds {key}", value, describe) for key, value in _variables(f)},
        }
    finally:
        _within.pop()


def named(value: Any) -> str | None:
    """The name of a class, of a built-in function or of a module; None of anything else."""
    free = isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, NoneType))
    if free or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return value.__name__ if isinstance(value, ModuleType) else None


def _variables(f: FunctionType) -> Iterator[tuple[str, Any]]:
    """Defaults, variables of the functions around it, and what is plain or of this kind among its module's."""
    for place, value in enumerate(f.__defaults__ or ()):
        yield f"default {place}", value
    yield from sorted((f.__kwdefaults__ or {}).items())
    for key, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield key, cell.cell_contents
        except ValueError:  # not assigned yet
            yield key, None
    for key in sorted(_names(f.__code__)):
        value = f.__globals__.get(key)
        if isinstance(value, (bool, int, float, str)) or (
            isinstance(value, FunctionType) and "<" in value.__qualname__
        ):
            yield f"{key} of the module", value


def _held(what: str, value: Any, describe: Describe) -> Any:
    if isinstance(value, nn.Module):
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", "sha256": sha256(value.state_dict())}
    described = describe(value)
    if described != f"<{type(value).__name__}>":
        return described
    if ADDRESS.search(said := repr(value)):
        raise UnknownValueError(
            f"{what}, a {type(value).__name__}, of which two cannot be told apart: so a run could go on with another. "
            "Give the recipe a frozen attrs value in place of the function, or let it hold plain values"
        )
    return said


def _code(code: CodeType) -> tuple[Any, ...]:
    """What it does: without file, lines and the names of its own variables."""
    arguments = code.co_argcount + code.co_kwonlyargcount
    return (
        code.co_code.hex(),
        code.co_exceptiontable.hex(),
        tuple(_constant(value) for value in code.co_consts),
        code.co_names,
        code.co_varnames[:arguments],
        code.co_freevars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
    )


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, frozenset):  # of strings, in another order in every process
        return sorted(map(repr, value))
    return tuple(map(_constant, value)) if isinstance(value, tuple) else repr(value)


def _names(code: CodeType) -> set[str]:
    return {*code.co_names}.union(*(_names(value) for value in code.co_consts if isinstance(value, CodeType)))
