"""Functions as values of a recipe: what tells one from another.

A function at the top of a module is what its name says. Of lambdas, and of functions that another one made, there may
be many by one name: of these the code counts, too, and what they hold.
"""

from __future__ import annotations

import dis
import hashlib
import json
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

Describe = Callable[[Any, str], Any]  # of a value, and of where it is
_within: list[object] = []  # those that are being described: a function may hold itself


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
            "code": sha256(repr(_code(f.__code__))),
            "holds": {key: describe(value, f"{name} holds {key}") for key, value in _variables(f)},
        }
    finally:
        _within.pop()


def kind(cls: type, describe: Describe) -> str:
    """The name of a class; of one that a function made, with a hash of what its methods hold of that function."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    if "<locals>" not in cls.__qualname__ or any(cls is other for other in _within):
        return name
    _within.append(cls)
    try:
        held = {
            f"{f.__qualname__} holds {key}": describe(value, f"{f.__module__}.{f.__qualname__} holds {key}")
            for f in sorted(_methods(cls), key=lambda f: f.__qualname__)
            for key, value in _closure(f)
            if key != "__class__"
        }
    finally:
        _within.pop()
    return f"{name} {sha256(json.dumps(held, sort_keys=True))}" if held else name


def free(value: Any) -> bool:
    """Whether a built-in function is one of a module, and not a method of some value."""
    return isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, NoneType))


def named(value: Any) -> str | None:
    """The name of a class, of a built-in function or of a module; None of anything else."""
    if free(value) or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return value.__name__ if isinstance(value, ModuleType) else None


def sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _methods(cls: type) -> Iterator[FunctionType]:
    """Those that are written in the class; attrs and dataclasses make theirs without variables of its own."""
    for value in vars(cls).values():
        for f in (value.fget, value.fset) if isinstance(value, property) else (value,):
            f = f.__func__ if isinstance(f, (staticmethod, classmethod)) else f
            if isinstance(f, FunctionType) and f.__module__ == cls.__module__:
                yield f


def _closure(f: FunctionType) -> Iterator[tuple[str, Any]]:
    for key, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield key, cell.cell_contents
        except ValueError:  # not assigned yet
            yield key, None


def _variables(f: FunctionType) -> Iterator[tuple[str, Any]]:
    """Defaults, variables of the functions around it, and what is plain or of this kind among its module's."""
    for place, value in enumerate(f.__defaults__ or ()):
        yield f"default {place}", value
    yield from sorted((f.__kwdefaults__ or {}).items())
    yield from _closure(f)
    for key in sorted(_names(f.__code__)):
        value = f.__globals__.get(key)
        if isinstance(value, (bool, int, float, str)) or (
            isinstance(value, FunctionType) and "<" in value.__qualname__
        ):
            yield f"{key} of the module", value


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
    """What it reads of its module: not the attributes, which are among the names of its code, too."""
    own = {at.argval for at in dis.get_instructions(code) if at.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_names(value) for value in code.co_consts if isinstance(value, CodeType)))
