"""The rows by name: one file here a class of diffusers 0.42, and those of other packages.

Another package adds a row by an entry point, in its `pyproject.toml`:

    [project.entry-points."flowmap_diffusers.rows"]
    mine = "its_module:ROW"
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..row import Row

    ROWS: Mapping[str, Row]

GROUP = "flowmap_diffusers.rows"


def here() -> list[str]:
    """The names of the rows in this folder, without loading one."""
    return [m.name for m in iter_modules(__path__)]


@cache
def names() -> list[str]:
    """Of all rows."""
    return sorted({*here(), *(entry.name for entry in metadata.entry_points(group=GROUP))})


def collected() -> Mapping[str, Row]:
    from ..row import Row

    found: dict[str, Row] = {name: import_module(f".{name}", __name__).ROW for name in here()}
    for entry in metadata.entry_points(group=GROUP):
        row = entry.load()
        if entry.name in found:
            raise ValueError(f"the row {entry.name!r} of {entry.value} is there already: give it another name")
        if not isinstance(row, Row):
            raise TypeError(f"the row {entry.name!r} ({entry.value}) is a {type(row).__name__}: must be a Row")
        found[entry.name] = row
    copyreg.pickle(Row, pickled)
    return dict(sorted(found.items()))


def __getattr__(name: str) -> Any:
    """ROWS: once they are asked for."""
    if name != "ROWS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = collected()
    return found


def named(name: str) -> Row:
    return _known()[name]


def pickled(row: Row) -> tuple[Any, tuple[str]]:
    """A row is pickled, and copied, by its name."""
    known = _known()
    if (name := next((name for name, other in known.items() if other is row), None)) is None:
        raise TypeError(f"a row of {row.transformer} that is not among {', '.join(known)} cannot be pickled or copied")
    return named, (name,)


def _known() -> Mapping[str, Row]:
    found: Mapping[str, Row] = globals().get("ROWS") or __getattr__("ROWS")
    return found
