"""Which network the weights in a student's directory are of: written beside them, where no plugin knows the directory.

A plugin's backbone that writes its students as every spec does is known by its registered name and its fields. A
network of one's own, `ModuleSpec`, is given again: the directory has no code, and no file in it names code to run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module, util
from pathlib import Path
from typing import Any, cast

import attrs
from torch import nn

from . import mistaken
from .kind import WITHIN
from .model import FlowMap, FlowMapSpec
from .module import ModuleSpec
from .path import Convention
from .times import ALL
from .validators import article

KEY, FILE = "network", "flowmap.json"


class NetworkError(ValueError):
    """The directory does not say which network its weights are of, or what was given is none."""


def facts(spec: FlowMapSpec, u: FlowMap, registered: Mapping[str, FlowMapSpec]) -> dict[str, Any]:
    """For `flowmap.json`: which network it is, where only we know, and which times it serves, where not all."""
    network = told(spec, registered)
    own = {} if network is None else {KEY: network}
    return own if tuple(u.within) == ALL else {**own, WITHIN: list(u.within)}


def told(spec: FlowMapSpec, registered: Mapping[str, FlowMapSpec]) -> dict[str, Any] | None:
    """None of a backbone whose plugin knows its directories, or whose fields are no plain values."""
    if isinstance(spec, ModuleSpec):
        own = {"time": spec.time, "gamma": spec.gamma, "delta": spec.delta, "convention": attrs.asdict(spec.convention)}
        features = (
            {} if spec.features is None else {"features": spec.features if isinstance(spec.features, str) else ""}
        )
        return {"module": spec.about().name, "maker": maker(spec.module), **own, **features}
    kind: Any = type(spec)
    if kind.save is not FlowMapSpec.save or not attrs.has(kind):
        return None
    fields = {f.alias: getattr(spec, f.name) for f in attrs.fields(kind) if f.init}
    name = next((name for name, one in registered.items() if type(one) is type(spec)), None)
    return {"backbone": name, "fields": fields} if name is not None and _plain([*fields.values()]) else None


def maker(module: object) -> str | None:
    """`package.module:make`, of a function or a class that can be imported by that; None of others."""
    home, name = getattr(module, "__module__", None), getattr(module, "__qualname__", "")
    if isinstance(module, nn.Module) or not isinstance(home, str) or not name.isidentifier():
        return None
    return f"{home}:{name}" if home != "__main__" and getattr(sys.modules.get(home), name, None) is module else None


def made(path: Path, given: object, registered: Mapping[str, FlowMapSpec]) -> FlowMapSpec | None:
    """The spec of the student in a directory. given: it, its network, what makes that, or `package.module:NAME` of one
    of these; None, if it is not. None where the directory does not say and nothing is given.
    """
    facts = mistaken.read(path / FILE).get(KEY)
    given = imported(given) if isinstance(given, str) else given
    if isinstance(given, FlowMapSpec):
        return given
    if given is not None:
        return _of_module(path, given, facts)
    if facts is None:
        return None
    if "module" in facts:
        named = f", such as {facts['maker']!r}" if facts["maker"] else ""
        raise NetworkError(
            f"{path}: its network, {facts['module']}, is of your own code, which is not in the directory: give it "
            f"again, flowmap.load(DIR, backbone=net), or name what makes it, 'package.module:NAME' or "
            f"'file.py:NAME'{named} (--backbone)"
        )
    spec: Any = registered.get(facts["backbone"])
    if spec is None:
        raise NetworkError(
            f"{path}: its backbone is {facts['backbone']!r}, which no plugin here has: install the one that it was "
            "made with, or give the spec, flowmap.load(DIR, backbone=...)"
        )
    return cast("FlowMapSpec", attrs.evolve(spec, **{name: _rows(value) for name, value in facts["fields"].items()}))


def imported(name: str) -> Any:
    """What `package.module:NAME` or `file.py:NAME` is; both are looked for in the working directory, too."""
    home, colon, inner = name.rpartition(":")
    if not colon:
        raise NetworkError(f"backbone = {name!r}: must be a registered name, 'package.module:NAME' or 'file.py:NAME'")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = _file(Path(home)) if home.endswith(".py") else import_module(home)
        for part in inner.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise NetworkError(f"backbone = {name!r}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    return found


def _file(path: Path) -> Any:
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _of_module(path: Path, given: object, facts: Mapping[str, Any] | None) -> ModuleSpec:
    if not isinstance(given, (nn.Module, Callable)):  # type: ignore[arg-type]
        a = article(type(given).__name__)
        raise NetworkError(f"backbone is {a}: must be a FlowMapSpec, an nn.Module or a function that makes one")
    if facts is None or "module" not in facts:
        raise NetworkError(f"{path} was not made of a ModuleSpec: give its spec, and not its network")
    if facts.get("features") == "":
        raise NetworkError(f"{path}: its ModuleSpec has a function as features: give the spec, and not its network")
    time = facts["time"]
    return ModuleSpec(
        given,  # type: ignore[arg-type]
        tuple(time) if isinstance(time, list) else time,
        gamma=facts["gamma"],
        delta=facts["delta"],
        features=facts.get("features"),
        convention=Convention(**facts["convention"]),
    )


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _rows(value: Any) -> Any:
    return tuple(map(_rows, value)) if isinstance(value, list) else value
