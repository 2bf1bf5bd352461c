"""Which forms there are, for other programs, and of which backbones; a list of them loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ..lazily import Lazily
from ..plugins import claims


@runtime_checkable
class HasForms(Protocol):
    """A `FlowMapSpec` whose students, as `save` wrote them, can be turned into files for other programs."""

    def forms(self) -> Mapping[str, Any]:
        """A `Form` by name: `flowmap export --to NAME`."""


def forms_of(spec: object) -> Mapping[str, Any]:
    return spec.forms() if isinstance(spec, HasForms) else {}


def names(pm: Any) -> dict[str, list[str]]:
    """Every form, with the registered backbones that have it."""
    found: dict[str, list[str]] = {}
    for name, (_, items) in claims(pm, "flowmap_backbones").items():
        told = items.forms.get(name) if isinstance(items, Lazily) else None
        for form in forms_of(items[name]) if told is None else told:
            found.setdefault(form, []).append(name)
    return dict(sorted(found.items()))
