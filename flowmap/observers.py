"""Observers watch training and never change it."""

from __future__ import annotations

import warnings
from typing import Any

import pluggy
from attrs import define, field

STRIKES = 3


@define
class Observers:
    """Calls hooks one implementation at a time; one that raises three times is not called again."""

    pm: pluggy.PluginManager
    _failures: dict[tuple[str, str], int] = field(factory=dict, init=False)

    def call(self, hook: str, **arguments: Any) -> None:
        caller: pluggy.HookCaller = getattr(self.pm.hook, hook)
        for impl in caller.get_hookimpls():
            key = (impl.plugin_name, hook)
            if self._failures.get(key, 0) >= STRIKES:
                continue
            try:
                impl.function(**{name: arguments[name] for name in impl.argnames})
            except Exception as error:
                self._failures[key] = count = self._failures.get(key, 0) + 1
                end = "; it is switched off" if count >= STRIKES else ""
                warnings.warn(f"{hook} of plugin {impl.plugin_name!r} raised {error!r}{end}", stacklevel=2)
