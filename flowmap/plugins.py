"""Discovery. Nothing happens at import; a manager is a value, so tests make their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pluggy

from . import hookspecs

if TYPE_CHECKING:
    import torch

    from .model import FlowMap, FlowMapSpec
    from .recipe import Recipe

GROUP = "flowmap"
KINDS = {"flowmap_stages": "method with stages for a recipe"}


class PluginError(Exception):
    """Two plugins claim one name, or nothing answers to it."""


def manager(*plugins: object, entry_points: bool = True) -> pluggy.PluginManager:
    """A plugin manager with `plugins`, and with what is installed unless named in FLOWMAP_DISABLE_PLUGINS."""
    pm = pluggy.PluginManager(GROUP)
    pm.add_hookspecs(hookspecs)
    for name in filter(None, os.environ.get("FLOWMAP_DISABLE_PLUGINS", "").split(",")):
        pm.set_blocked(name)
    for plugin in plugins:
        pm.register(plugin)
    if entry_points:
        pm.load_setuptools_entrypoints(GROUP)
    pm.check_pending()
    return pm


@cache
def installed() -> pluggy.PluginManager:
    return manager()


def collect(pm: pluggy.PluginManager, hook: str) -> dict[str, Any]:
    """Merge what every plugin returned; two plugins may not claim one name."""
    return {name: item for name, (_, item) in _claims(pm, hook).items()}


def origins(pm: pluggy.PluginManager, hook: str) -> dict[str, str]:
    """Which plugin each name comes from."""
    return {name: plugin for name, (plugin, _) in _claims(pm, hook).items()}


def _claims(pm: pluggy.PluginManager, hook: str) -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    caller: pluggy.HookCaller = getattr(pm.hook, hook)
    for impl in caller.get_hookimpls():
        for name, item in cast(Mapping[str, Any], impl.function()).items():
            if name in found:
                raise PluginError(f"{name!r} comes from both {found[name][0]!r} and {impl.plugin_name!r}")
            found[name] = impl.plugin_name, item
    return dict(sorted(found.items()))


def named(pm: pluggy.PluginManager, hook: str, name: str) -> Any:
    """The item of that name, or an error that lists the names there are."""
    items = collect(pm, hook)
    if name not in items:
        near = get_close_matches(name, items, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        kind = KINDS.get(hook) or hook.removeprefix("flowmap_").removesuffix("s")
        raise PluginError(f"no {kind} is called {name!r}: there are {', '.join(items) or 'none'}{hint}")
    return items[name]


def backbone(name: str, pm: pluggy.PluginManager | None = None) -> FlowMapSpec:
    """The spec for a registered name, a directory or a hub id."""
    pm = pm or installed()
    registered = collect(pm, "flowmap_backbones")
    if name in registered:
        return cast("FlowMapSpec", registered[name])
    spec: FlowMapSpec | None = pm.hook.flowmap_resolve_backbone(name=name)
    if spec is None:
        inside = Path(name) / "student"
        hint = f"; did you mean {str(inside)!r}?" if inside.is_dir() else ""
        raise PluginError(
            f"no plugin knows the backbone {name!r}: give one of {', '.join(registered)}, the directory of a diffusers "
            f"pipeline, or a hub id{hint}"
        )
    return spec


def trained_by(recipe: Recipe, method: str, pm: pluggy.PluginManager | None = None) -> Recipe:
    """`recipe` with the stages of another method at its scale in place of its own, named `recipe:method`."""
    import attrs

    stages = named(pm or installed(), "flowmap_stages", method)(recipe)
    return attrs.evolve(recipe, stages=stages, name=f"{recipe.name}:{method}")


def load(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, pm: Any = None
) -> FlowMap:
    """The student in a directory that `distill` wrote; dtype: float32 by default."""
    import torch

    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: there is no such directory")
    return backbone(str(path), pm).load(Path(path), device=torch.device(device), dtype=dtype or torch.float32)
