"""Discovery. Nothing happens at import; a manager is a value, so tests make their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pluggy

from . import hookspecs, mistaken
from .lazily import Lazily
from .validators import article, shown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .model import FlowMap, FlowMapSpec
    from .recipe import Recipe
    from .rewards import Reward
    from .training.tracking import Tracker

GROUP = "flowmap"
KINDS = {"flowmap_stages": "method for a whole recipe"}
MUST = {
    "flowmap_backbones": "a FlowMapSpec",
    "flowmap_methods": "a function that makes a Method",
    "flowmap_rewards": "a Reward, called with videos and prompts",
    "flowmap_stages": "a function of a Recipe that makes its stages",
    "flowmap_trackers": "a function of a directory that makes a Tracker",
}


class PluginError(Exception):
    """Two plugins claim one name, or nothing answers to it."""


def manager(*plugins: object, entry_points: bool = True) -> pluggy.PluginManager:
    """A plugin manager with `plugins`, and with what is installed unless named in FLOWMAP_DISABLE_PLUGINS."""
    pm = pluggy.PluginManager(GROUP)
    pm.add_hookspecs(hookspecs)
    for name in filter(None, os.environ.get("FLOWMAP_DISABLE_PLUGINS", "").split(",")):
        pm.set_blocked(name)
    for plugin in plugins:
        _register(pm, plugin, None)
    for entry in metadata.entry_points(group=GROUP) if entry_points else ():
        if pm.is_blocked(entry.name) or pm.get_plugin(entry.name) is not None:
            continue
        try:
            plugin = entry.load()
        except Exception as error:
            told = f"plugin {entry.name!r} ({entry.value}) cannot be imported: {type(error).__name__}: {error}"
            raise PluginError(f"{told}; FLOWMAP_DISABLE_PLUGINS={entry.name} leaves it out") from error
        _register(pm, plugin, entry.name)
    try:
        pm.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(str(error)) from error
    return pm


def _register(pm: pluggy.PluginManager, plugin: object, name: str | None) -> None:
    """A hook of the wrong form is its author's to mend, and named."""
    try:
        pm.register(plugin, name)
    except (pluggy.PluginValidationError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise PluginError("; ".join(lines)) from error


@cache
def installed() -> pluggy.PluginManager:
    return manager()


def collect(pm: pluggy.PluginManager, hook: str) -> dict[str, Any]:
    """Merge what every plugin returned; two plugins may not claim one name."""
    return {name: _good(plugin, hook, name, items) for name, (plugin, items) in claims(pm, hook).items()}


def origins(pm: pluggy.PluginManager, hook: str) -> dict[str, str]:
    """Which plugin each name comes from."""
    return {name: plugin for name, (plugin, _) in claims(pm, hook).items()}


def claims(pm: pluggy.PluginManager, hook: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """By name, the plugin that it comes from, and what that plugin registers; what is `Lazily` there is not loaded."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    caller: pluggy.HookCaller = getattr(pm.hook, hook)
    for impl in caller.get_hookimpls():
        items = _registered(impl.plugin_name, hook, impl.function)
        for name in items:
            if name in found:
                raise PluginError(f"{name!r} comes from both {found[name][0]!r} and {impl.plugin_name!r}")
            found[name] = impl.plugin_name, items
    return dict(sorted(found.items()))


def _registered(plugin: str, hook: str, function: Callable[[], Any]) -> Mapping[str, Any]:
    """What a plugin registers, if it is what the hook asks for."""
    try:
        items = function()
    except Exception as error:
        raise PluginError(f"plugin {plugin!r}: {hook} raised {type(error).__name__}: {error}") from error
    if not isinstance(items, Mapping):
        raise PluginError(f"plugin {plugin!r}: {hook} gave {shown(items)}: must be a mapping of names")
    for name in items:
        if not isinstance(name, str):
            raise PluginError(f"plugin {plugin!r}: {hook} has the name {shown(name)}: must be a string")
        if not isinstance(items, Lazily):
            _good(plugin, hook, name, items)
    return items


def _good(plugin: str, hook: str, name: str, items: Mapping[str, Any]) -> Any:
    try:
        item = items[name]
    except Exception as error:
        raise PluginError(f"plugin {plugin!r}: {hook} raised {type(error).__name__}: {error}") from error
    if not _fits(hook, item):
        raise PluginError(f"plugin {plugin!r}: {hook} has {shown(item)} for {name!r}: must be {MUST[hook]}")
    return item


def _fits(hook: str, item: object) -> bool:
    from .model import FlowMapSpec

    if hook == "flowmap_backbones":
        return isinstance(item, FlowMapSpec)
    return hook not in MUST or callable(item)


def named(pm: pluggy.PluginManager, hook: str, name: str, also: Iterable[str] = ()) -> Any:
    """The item of that name, or an error that lists the names there are; also: those that are to be had elsewhere."""
    items = collect(pm, hook)
    if name not in items:
        items |= dict.fromkeys(also)
        near = get_close_matches(name, items, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        kind = KINDS.get(hook) or hook.removeprefix("flowmap_").removesuffix("s")
        raise PluginError(f"no {kind} is called {name!r}: there are {', '.join(items) or 'none'}{hint}")
    return items[name]


def trackers(names: Sequence[str], pm: pluggy.PluginManager) -> Mapping[str, Callable[[Path], Tracker]]:
    """What makes the trackers of these names."""
    return {name: named(pm, "flowmap_trackers", name) for name in dict.fromkeys(names)}


def backbone(name: str, pm: pluggy.PluginManager | None = None, also: Iterable[str] = ()) -> FlowMapSpec:
    """The spec for a registered name, a directory or a hub id. also: what else could have been meant."""
    pm = pm or installed()
    registered = collect(pm, "flowmap_backbones")
    if name in registered and (Path(name) / mistaken.INDEX).is_file():
        raise PluginError(
            f"{name!r} is a registered backbone, and a pipeline's directory here: write {os.path.join('.', name)!r} "
            "for the directory, or go elsewhere for the other"
        )
    if name in registered:
        return cast("FlowMapSpec", registered[name])
    try:
        spec = _resolved(pm, name) or _told(Path(name), None, registered)
        if spec is not None:
            spec.validate()
            return spec
        told = _mistaken(Path(name))
    except ValueError as error:
        raise PluginError(str(error)) from error
    if told is not None:
        raise PluginError(f"{name}: {told}")
    missing = f"there is no directory {name!r}, and " if os.sep in name else ""
    near = get_close_matches(name, [*registered, *also], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise PluginError(
        f"{missing}no plugin knows the backbone {name!r}: give one of {', '.join(registered)}, the directory of a "
        f"diffusers pipeline, or a hub id{hint}"
    )


def student(path: str | Path, given: object = None, pm: pluggy.PluginManager | None = None) -> FlowMapSpec:
    """The spec of the student in a directory. given: a spec, a registered name, a network, what makes one, or
    `package.module:NAME` of one of these: needed where the student is of a network of one's own."""
    pm = pm or installed()
    if given is None or (isinstance(given, str) and given in (registered := collect(pm, "flowmap_backbones"))):
        return backbone(str(path), pm) if given is None else cast("FlowMapSpec", registered[given])
    try:
        return cast("FlowMapSpec", _told(Path(path), given, {}))
    except ValueError as error:
        raise PluginError(str(error)) from error


def _told(path: Path, given: object, registered: Mapping[str, FlowMapSpec]) -> FlowMapSpec | None:
    """What is written beside the weights of a student says of its network."""
    if given is None and not path.is_dir():
        return None
    from . import students

    return students.made(path, given, registered)


def _mistaken(path: Path) -> str | None:
    """What is at a path that no plugin takes for a backbone; None where there is nothing."""
    if (told := mistaken.what(path)) is not None or not path.exists():
        return told
    if kind := mistaken.read(path / mistaken.INDEX).get("_class_name"):
        return f"is {article(kind)}, which no plugin here takes for a backbone"
    return "no plugin knows what is in this directory: give a student's, or that of a diffusers pipeline"


def _resolved(pm: pluggy.PluginManager, name: str) -> FlowMapSpec | None:
    """What the first plugin that knows the name takes it for."""
    from .model import FlowMapSpec

    caller: pluggy.HookCaller = pm.hook.flowmap_resolve_backbone
    for impl in reversed(caller.get_hookimpls()):
        spec = impl.function(name)
        if isinstance(spec, FlowMapSpec):
            return spec
        if spec is not None:
            gave = f"plugin {impl.plugin_name!r}: flowmap_resolve_backbone gave {shown(spec)}"
            raise PluginError(f"{gave} for {name!r}: must be a FlowMapSpec, or None")
    return None


def trained_by(recipe: Recipe, method: str, pm: pluggy.PluginManager | None = None) -> Recipe:
    """`recipe` with the stages of another method at its scale in place of its own, and with that method's student where
    it has one of its own; its name says so, if it has one."""
    import attrs

    from .recipe import Recipe

    pm = pm or installed()
    parts = collect(pm, "flowmap_methods")
    if method in parts and method not in (whole := collect(pm, "flowmap_stages")):
        raise PluginError(
            f"the method {method!r} is of one stage: put it into a Stage of a recipe file; for a whole recipe there "
            f"are {', '.join(whole)}"
        )
    make = named(pm, "flowmap_stages", method)
    try:
        made, name = make(recipe), recipe.name and f"{recipe.name}:{method}"
        if isinstance(made, Recipe):
            return attrs.evolve(made, name=name)
        return attrs.evolve(recipe, stages=made, name=name)
    except (ValueError, TypeError) as error:
        plugin = origins(pm, "flowmap_stages")[method]
        raise PluginError(
            f"plugin {plugin!r}: its stages {method!r} for {recipe.name or 'the recipe'}: {error}"
        ) from error


def reward(name: str, pm: pluggy.PluginManager | None = None) -> Reward:
    """A registered reward."""
    return cast("Reward", named(pm or installed(), "flowmap_rewards", name))


def load(
    path: str | Path,
    *,
    backbone: FlowMapSpec | nn.Module | Callable[[], nn.Module] | str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    pm: Any = None,
) -> FlowMap:
    """The student in a directory that `distill` wrote; dtype: float32 by default.

    backbone: of a student of one's own network, the network again, what makes it, its spec, or `package.module:NAME` of
    one of these; the directory has its settings and weights, and no code.
    """
    import torch

    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: there is no such directory")
    spec = student(path, backbone, pm)
    return spec.load(Path(path), device=torch.device(device), dtype=dtype or torch.float32)
