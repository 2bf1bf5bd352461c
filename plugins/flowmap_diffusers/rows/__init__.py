"""The rows by name: one file here a class of diffusers 0.42, and those of other packages.

Another package adds a row by an entry point, in its `pyproject.toml`:

    [project.entry-points."flowmap_diffusers.rows"]
    mine = "its_module:ROW"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module, metadata
from pkgutil import iter_modules

from ..row import Row

GROUP = "flowmap_diffusers.rows"


def collected() -> Mapping[str, Row]:
    found: dict[str, Row] = {m.name: import_module(f".{m.name}", __name__).ROW for m in iter_modules(__path__)}
    for entry in metadata.entry_points(group=GROUP):
        row = entry.load()
        if entry.name in found:
            raise ValueError(f"the row {entry.name!r} of {entry.value} is there already: give it another name")
        if not isinstance(row, Row):
            raise TypeError(f"the row {entry.name!r} ({entry.value}) is a {type(row).__name__}: must be a Row")
        found[entry.name] = row
    return dict(sorted(found.items()))


ROWS = collected()
