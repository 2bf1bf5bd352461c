"""What is imported when it is first asked for, so that a list of names costs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")


def place(path: str) -> Any:
    """What is at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def public(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names are in `modules`: by module, the names from it."""
    where = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return place(f"{where[name]}:{name}")

    return find


class Lazily(Mapping[str, T]):
    """Items by name, each found or made when it is asked for: what a hook may give in place of a dictionary.

    makes: by name, where the item is, as `module:name`, or a function of nothing that makes it. forms: of backbones,
    the names of `HasForms.forms()` by the backbone's, so that it need not be made to list them; others are.
    """

    def __init__(self, makes: Mapping[str, str | Callable[[], T]], forms: Mapping[str, Sequence[str]] = {}) -> None:
        self._makes: dict[str, Callable[[], T]] = {
            name: partial(place, make) if isinstance(make, str) else make for name, make in makes.items()
        }
        self.forms = forms

    def __getitem__(self, name: str) -> T:
        return self._makes[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makes)

    def __len__(self) -> int:
        return len(self._makes)

    def __contains__(self, name: object) -> bool:
        return name in self._makes
