"""Values as JSON: what a recipe writes down, and what tells one from another."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import attrs
import numpy as np
from torch import Tensor, nn

from . import functions
from .model import FlowMapSpec, sha256
from .validators import article

SILENT = re.compile(r"\bat 0x[0-9a-f]+|<[\w.]+ object\b|\.\.\.")  # a repr that leaves out what the value is
CACHED: type[Any] = type(functools.cache(lambda: None))


class UnknownValueError(ValueError):
    """A value that nothing tells from others of its type."""


def told(value: Any, at: str, strict: bool) -> Any:
    """A value as JSON: components by type and field, tensors and arrays by type, shape and hash.

    at: where the value is, for errors. strict: an `UnknownValueError` for what nothing tells from others of its type,
    which is `<its type>` otherwise; what functions hold must always be told.
    """
    if isinstance(value, Enum):
        return {"type": _type(value, at, strict), "name": value.name}
    if attrs.has(type(value)) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return {"type": _type(value, at, strict), **_fields(value, strict)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Integral, Real)):  # of numpy: 1e-4 is 1e-4
        return int(value) if isinstance(value, Integral) else float(value)
    if (held := _held(value, at, strict)) is not None:
        return held
    if isinstance(value, FunctionType):
        return functions.function(value, _strictly)
    if isinstance(value, (MethodType, BuiltinFunctionType)) and not functions.free(value):
        of = told(value.__self__, f"{at}.__self__", strict)
        return {"type": "method", "name": value.__qualname__, "of": of}
    if isinstance(value, type) and strict:
        return functions.kind(value, _strictly)
    if (name := functions.named(value)) is not None:
        return name
    if isinstance(value, Path):
        return str(value)
    said = repr(value)
    if not SILENT.search(said):
        return said
    if not strict:
        return f"<{type(value).__name__}>"
    raise UnknownValueError(
        f"{at}{',' if ' holds ' in at else ' is'} {article(type(value).__name__)}, of which two cannot be told apart: "
        "so a run could go on with another. Give the recipe numbers, words, tensors, functions at the top of a module "
        "or frozen attrs values of such instead"
    )


def _strictly(value: Any, at: str) -> Any:
    return told(value, at, strict=True)


def _type(value: object, at: str, strict: bool) -> str:
    kind = type(value)
    return functions.kind(kind, _strictly) if strict else f"{kind.__module__}.{kind.__qualname__}"


def _fields(value: Any, strict: bool) -> dict[str, Any]:
    """Those that are shown. A spec whose fingerprint tells it may hold what else nothing tells."""
    of = attrs.fields(type(value)) if attrs.has(type(value)) else dataclasses.fields(value)
    own = {f.name.lstrip("_"): getattr(value, f.name) for f in of if f.init and f.repr}  # as arguments are called
    mark = value.fingerprint() if isinstance(value, FlowMapSpec) else None
    name = type(value).__name__
    if mark is None:
        return {key: told(v, f"{name}.{key}", strict) for key, v in own.items()}
    return {"fingerprint": mark} | {key: _marked(v, f"{name}.{key}") for key, v in own.items()}


def _marked(value: Any, at: str) -> Any:
    if not isinstance(value, nn.Module):
        try:
            return told(value, at, strict=False)
        except UnknownValueError:
            pass
    return f"<{type(value).__name__}>"


def _held(value: Any, at: str, strict: bool) -> Any:
    """What is made of other values; None of anything else."""
    if isinstance(value, functools.partial):
        parts = [told(v, at, strict) for v in (value.func, value.args, value.keywords)]
        return {"type": "functools.partial", "of": parts}
    if isinstance(value, Mapping):
        return {str(key): told(v, f"{at}[{key!r}]", strict) for key, v in value.items()}
    if isinstance(value, (set, frozenset)):  # of strings, in another order in every process
        return sorted((told(v, at, strict) for v in value), key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [told(v, f"{at}[{place}]", strict) for place, v in enumerate(value)]
    if isinstance(value, Tensor):
        return {"type": "torch.Tensor", "shape": list(value.shape), "sha256": _sha256({"": value})}
    if isinstance(value, np.ndarray):
        return _array(value, at, strict)
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(value, CACHED):
        return {"type": "functools.cache", "of": told(value.__wrapped__, at, strict)}
    if isinstance(value, re.Pattern):  # whose repr is cut
        return {"type": "re.Pattern", "of": [repr(value.pattern), value.flags]}
    return None


def _array(value: np.ndarray[Any, Any], at: str, strict: bool) -> Any:
    if value.dtype.hasobject:
        return {"type": "numpy.ndarray", "of": told(value.tolist(), at, strict)}
    found = functions.sha256(np.ascontiguousarray(value).tobytes())
    return {"type": "numpy.ndarray", "dtype": str(value.dtype), "shape": list(value.shape), "sha256": found}


def _module(net: nn.Module) -> dict[str, Any]:
    """Its modules by type and settings, as far as those are told, and its tensors; not whether it is in training."""
    parts = {}
    for name, module in net.named_modules():
        own = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
        parts[name] = [_type(module, name, False), module.extra_repr(), told(own, name, strict=False)]
    state = {**net.state_dict(), **dict(net.named_buffers())}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {"type": _type(net, "", False), "parts": functions.sha256(json.dumps(parts)), "sha256": _sha256(tensors)}


def _sha256(tensors: Mapping[str, Tensor]) -> str | None:
    """Of those that are there: on the meta device nothing is."""
    return sha256({name: value for name, value in tensors.items() if not value.is_meta})


def found(value: Any, name: str) -> Iterator[Any]:
    """What the fields `name` of attrs values below `value` hold."""
    if attrs.has(type(value)):
        fields = {f.name: getattr(value, f.name) for f in attrs.fields(type(value))}
        if name in fields:
            yield fields.pop(name)
        value = [*fields.values()]
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from found(one, name)
